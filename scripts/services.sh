#!/usr/bin/env bash
# Install the servers that tests and benchmarks use, where we are root on Debian or Ubuntu; else say what is missing.
# Never fails: what cannot be had is skipped by the tests, and counted as NOT PROVEN.
set -euo pipefail

say() { printf 'install: %s\n' "$*" >&2; }

have_postgresql() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null 2>&1; }

have_java() { java -version 2>&1 | grep -qE 'version "(1[7-9]|[2-9][0-9])'; }

have_rabbitmq() { { [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null 2>&1; } && command -v openssl >/dev/null 2>&1; }

root_on_debian() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; }

install_postgresql() {
    apt-get update
    apt-get install --yes --no-install-recommends postgresql-common
    # Debian's package would make and start a cluster of its own.
    mkdir -p /etc/postgresql-common
    sed -ri 's/^#?(create_main_cluster) .*/\1 = false/' /etc/postgresql-common/createcluster.conf
    apt-get install --yes --no-install-recommends postgresql
}

# Apache Kafka itself comes from Maven's central repository, into build/kafka, when a test first needs it.
install_java() {
    apt-get update
    apt-get install --yes --no-install-recommends openjdk-17-jre-headless maven
}

# Debian's package would start a broker: a policy says no, unless this machine has one already.
install_rabbitmq() {
    local policy=/usr/sbin/policy-rc.d
    apt-get update
    if [ -e "$policy" ]; then
        apt-get install --yes --no-install-recommends rabbitmq-server openssl
        return
    fi
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    local failed=0
    apt-get install --yes --no-install-recommends rabbitmq-server openssl || failed=1
    rm -f "$policy"
    return "$failed"
}

# want NAME PACKAGES INSTALL: run INSTALL if we may, else say what is missing.
want() {
    if ! root_on_debian; then
        say "!!! $1 missing: what needs it will be NOT PROVEN; apt-get install $2"
        return
    fi
    say "as root, installing $2 for the tests (nothing is started)"
    DEBIAN_FRONTEND=noninteractive "$3" >/dev/null 2>&1 || say "!!! $1 could not be installed: what needs it will be NOT PROVEN"
}

have_postgresql || want postgresql postgresql install_postgresql
{ have_java && { command -v mvn >/dev/null 2>&1 || [ -d build/kafka ]; }; } || want java "openjdk-17-jre-headless maven" install_java
have_rabbitmq || want rabbitmq "rabbitmq-server openssl" install_rabbitmq
