#!/bin/sh
# Runs each fuzz target for FUZZ_SECONDS (30 unless set), or those named as arguments. Needs a nightly toolchain;
# cargo-fuzz is built into the checkout's .cache when it is not installed. Exits 1 at the first crash; its input is
# below artifacts/.
set -eu
cd "$(dirname "$0")"
cache=$(cd ../.. && pwd)/.cache/cargo-fuzz
export RUSTUP_TOOLCHAIN="${FUZZ_TOOLCHAIN:-nightly}"
PATH="$PATH:$cache/bin"
command -v cargo-fuzz >/dev/null || cargo install --quiet --locked --root "$cache" cargo-fuzz
# The versions that ship, not the newest ones.
[ -f Cargo.lock ] || cp ../../Cargo.lock Cargo.lock
cargo run --quiet --bin seeds
for target in ${*:-request_head response_head chunked authority link}; do
    echo "fuzzing $target for ${FUZZ_SECONDS:-30} s"
    cargo fuzz run --fuzz-dir . "$target" -- \
        -max_total_time="${FUZZ_SECONDS:-30}" -max_len=8192 -timeout=10 -print_final_stats=1 -verbosity=0
done
