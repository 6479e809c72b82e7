#!/bin/bash
# Measures chunkservers alone, by their data port, beside MooseFS's and beside fio on plain files, in one run, and prints
# tables. usage: bench/chunk.sh [--jobs J,...] [--rounds N] [--chunks N] [--seconds S] [--subject 'NAME=mooring;LINE']...
# [--json FILE] [--verify] [--dir FOLDER ON THE DISK]; --help says more. Needs root, fio and Debian's moosefs-chunkserver.
# Results, with the machine they were taken on, are kept in bench/RESULTS.md.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release -q -p mooring -p mooring-bench --bin mooring --bin chunk
exec "${CARGO_TARGET_DIR:-target}/release/chunk" "$@"
