#!/bin/bash
# Measures masters alone, by their clients' port, MooseFS's beside ours in one run, and prints tables.
# usage: bench/master.sh [--jobs J,...] [--rounds N] [--files N] [--seconds S] [--subject 'NAME=mooring;LINE']...
# [--memory] [--dir FOLDER ON THE DISK]; --help says more. Needs root and Debian's moosefs-master.
# Results, with the machine they were taken on, are kept in bench/RESULTS.md.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release -q -p mooring -p mooring-bench --bin mooring --bin master
exec "${CARGO_TARGET_DIR:-target}/release/master" "$@"
