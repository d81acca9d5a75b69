#!/usr/bin/env bash
# What this bundle does on a machine with a GPU: ./run.sh probe | tests | memcheck | bench, or all of them in that order.
# It needs the NVIDIA driver; memcheck also compute-sanitizer. Nothing is installed and nothing is fetched. What fails does
# not keep the rest from running; the exit status says whether anything did.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
# Where the tests of the command find it.
export CARGO_BIN_EXE_granule=$PWD/bin/granule.granule.program
status=0
for what in ${*:-probe tests memcheck bench}; do
  printf '\n=== %s\n' "$what"
  ./bin/xtask.xtask.program bundled "$what" || status=1
done
exit $status
