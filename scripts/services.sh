#!/usr/bin/env bash
# Install the servers that tests and benchmarks use, where we are root on Debian or Ubuntu; else say what is missing.
# Never fails: what cannot be had is skipped by the tests, and counted as NOT PROVEN.
set -euo pipefail

say() { printf 'install: %s\n' "$*" >&2; }

have_postgresql() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null 2>&1; }

have_postgresql && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    say "!!! postgresql missing: what needs it will be NOT PROVEN; apt-get install postgresql"
    exit 0
fi
say "as root, installing postgresql for the tests (no cluster is made, nothing is started)"
export DEBIAN_FRONTEND=noninteractive
{
    apt-get update
    apt-get install --yes --no-install-recommends postgresql-common
    # Debian's package would make and start a cluster of its own.
    mkdir -p /etc/postgresql-common
    sed -ri 's/^#?(create_main_cluster) .*/\1 = false/' /etc/postgresql-common/createcluster.conf
    apt-get install --yes --no-install-recommends postgresql
} >/dev/null 2>&1 || say "!!! postgresql could not be installed: what needs it will be NOT PROVEN"
