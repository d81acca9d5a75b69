#!/usr/bin/env bash
# What this bundle does on a machine with a GPU: ./run.sh probe | tests | memcheck | bench, or all of them in that order.
# It needs the NVIDIA driver; memcheck also compute-sanitizer. Nothing is installed and nothing is fetched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# Where the tests of the command find it.
export CARGO_BIN_EXE_granule=$PWD/bin/granule.granule.program
for what in "${@:-probe tests memcheck bench}"; do
  for one in $what; do
    printf '\n=== %s\n' "$one"
    ./bin/xtask.xtask.program bundled "$one"
  done
done
