#!/bin/bash
# Measures Mooring beside MooseFS 3.0.117 in one run and prints a table. usage: bench/cluster.sh [ROUNDS] [SIZE]
# T is the seconds of each timed fio job (default 10). MOORING_MASTER_EXTRA is added to our mfsmaster.cfg, for instance
# "CHANGELOG_SAVE_MODE = 1", and MOORING_MOUNT_OPTIONS to our mount's, for instance "mfsserverfsync": both together compare
# at MooseFS's durability. Needs root, fio, python3 and Debian's moosefs packages.
# Results, with the machine they were taken on, are kept in bench/RESULTS.md.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release -p mooring
exec cargo run --release -q -p mooring-tests --example beside -- "$@"
