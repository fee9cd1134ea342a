# `make` alone shows the targets. Each does its own set-up on a fresh Debian with a Rust toolchain.

.DEFAULT_GOAL := help
.PHONY: help demo test bench image e2e check setup

# Where cargo puts programs. `make test` uses those that the tests were built with: a build without the tests' features
# would compile half of the tree again.
BIN := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/debug

# Set by `make demo DEMO_SECONDS=15`; the program gets it as a flag, never an empty one.
unexport DEMO_SECONDS

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## Three nodes on this machine with live traffic and a table; DEMO_SECONDS=15 ends by itself, 0 when all went well
	cargo build --locked --package posthouse --package posthouse-testkit --bins
	$(BIN)/posthouse-demo $(if $(DEMO_SECONDS),--seconds $(DEMO_SECONDS))

test: setup ## Every test: the workspace's own, then real clients (curl, Python's gRPC) against the demo
	cargo test --locked --workspace
	python3 -m unittest discover --quiet --start-directory benches
	python3 -m unittest discover --quiet --start-directory images
	POSTHOUSE_BIN=$(BIN) e2e/demo/run.sh
	@if [ "$$(id -u)" = 0 ]; then POSTHOUSE_BIN=$(BIN) e2e/ipv6/run.sh; \
	else echo 'test: IPv6 left out: it needs root for a network namespace of its own'; fi

bench: setup ## Requests a second and CPU a request beside nginx, HAProxy and Envoy (docs/benchmarks.md)
	benches/run.sh

# Names that no registry has: what is built here is never pulled by mistake.
image: export IMAGE ?= posthouse.invalid/posthouse:dev
image: export WORKLOADS_IMAGE ?= posthouse.invalid/demo-app:dev
image: setup ## Images without Docker: target/image/posthouse.tar (IMAGE=NAME:TAG) and workloads.tar, for docker load, kind, ctr
	images/archives.sh $(or $(CARGO_TARGET_DIR),target)/image

e2e: setup ## A real three-node Kubernetes on this machine (root), Helm, load, failures: e2e/kubernetes; the first run builds Kubernetes
	.ci/setup e2e
	e2e/kubernetes/run.sh

check: setup ## Formatting, lints, documentation, licences and sources of dependencies
	cargo fmt --all -- --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps --workspace
	.ci/links
	.ci/deny

setup:
	@.ci/setup
