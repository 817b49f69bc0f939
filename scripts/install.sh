#!/usr/bin/env bash
# Make .venv and install tidewire into it: scripts/install.sh EXTRA (demo, docs, test or dev).
# Needs a Python 3.11 or newer with venv; uses the package index that pip is configured for, and no HOME.
set -euo pipefail
cd "$(dirname "$0")/.."
extra=${1:?usage: scripts/install.sh demo|docs|test|dev}

say() { printf 'install: %s\n' "$*" >&2; }

fail() {
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 1
}

# A name on PATH may be a shim for something that is not there: run it before believing it.
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

has_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

# The first that is new enough and has venv; else the first that is new enough.
find_python() {
    local name fallback=
    for name in ${PYTHON:-python3 python3.11 python3.12 python3.13 python3.14}; do
        if command -v "$name" >/dev/null 2>&1 && new_enough "$name"; then
            if has_venv "$name"; then
                command -v "$name"
                return
            fi
            fallback=${fallback:-$name}
        fi
    done
    [ -n "$fallback" ] && command -v "$fallback" && return
    fail "no Python 3.11 or newer is on PATH${PYTHON:+ as $PYTHON}" \
        "on Debian 12 or Ubuntu 24.04: apt-get install python3 python3-venv; or name one: make install PYTHON=/path/to/python3.11"
}

# Debian and Ubuntu ship venv in a package of its own. Root in a container gets it; anybody else is told.
ensure_venv() {
    local python=$1 package
    has_venv "$python" && return
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "$python has no venv; as root, installing $package"
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$package"; } >&2 ||
            fail "$package could not be installed" "install $package by hand, then try again"
        return
    fi
    fail "$python has no venv" "apt-get install $package, or name another Python: make install PYTHON=/path/to/python3.11"
}

# A folder left behind by an interrupted run, or whose Python is gone, is made anew.
if ! { [ -x .venv/bin/python ] && new_enough .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1; }; then
    python=$(find_python)
    ensure_venv "$python"
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi
say "installing tidewire[$extra] into .venv"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extra]" ||
    fail "tidewire[$extra] could not be installed" "pip says why above; it needs the package index that pip is configured for"

# Two programs that fault tests drive. Without them those tests say NOT PROVEN; nothing else needs them.
wanted=()
if { [ "$extra" = test ] || [ "$extra" = dev ]; } && [ "$(uname)" = Linux ]; then
    command -v strace >/dev/null 2>&1 || wanted+=(strace)
    command -v faketime >/dev/null 2>&1 || wanted+=(faketime)
fi
if [ "${#wanted[@]}" -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "as root, installing ${wanted[*]} for the fault tests"
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${wanted[@]}"; } >/dev/null 2>&1 ||
            say "!!! ${wanted[*]} could not be installed: some fault tests will be NOT PROVEN"
    else
        say "!!! ${wanted[*]} missing: some fault tests will be NOT PROVEN; apt-get install ${wanted[*]}"
    fi
fi
if [ "$extra" = test ] || [ "$extra" = dev ]; then
    scripts/services.sh
fi
mkdir -p .venv/stamps
touch ".venv/stamps/$extra"
