#!/usr/bin/env bash
# Every check that needs no running service: format, lint, types twice, architecture, tidiness.
# All of them run even when one fails, so that one call shows everything. A check that cannot run counts as not
# run and fails the whole: silence is never a pass.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=()
missing=()

check() {
    local name=$1
    shift
    printf '\n=== %s\n' "$name"
    "$@" || failed+=("$name")
}

check "format" .venv/bin/ruff format --check --diff src tests benchmarks examples conftest.py
check "lint" .venv/bin/ruff check src tests benchmarks examples conftest.py
check "types (mypy, strict)" .venv/bin/mypy
# pyright is a Node.js program: where it cannot even start, say so instead of calling that a result.
if .venv/bin/pyright --version >/dev/null 2>&1; then
    check "types (pyright, strict)" .venv/bin/pyright
else
    missing+=("types (pyright, strict): pyright does not start here; it needs Node.js, which tidewire[dev] brings as a wheel")
fi
check "architecture and tidiness" .venv/bin/python -m pytest -q tests/test_architecture.py tests/test_tidy.py

printf '\n'
for name in ${missing[@]+"${missing[@]}"}; do printf '!!! NOT RUN: %s\n' "$name"; done
for name in ${failed[@]+"${failed[@]}"}; do printf '!!! FAILED: %s\n' "$name"; done
printf 'check: %d failed, %d not run\n' "${#failed[@]}" "${#missing[@]}"
[ "${#failed[@]}" -eq 0 ] && [ "${#missing[@]}" -eq 0 ]
