# Chainfire: build, demo, test, bench, package. `make` alone lists the targets.
#
# Compiled code lies outside the checkout, in one profile (release) for programs, tests and benchmarks alike: RocksDB is
# compiled once, which takes a quarter of an hour on two cores, and then never again.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help build demo test torture bench package sim fmt clean

export PATH := $(HOME)/.cargo/bin:$(PATH)
export CENTRA_CACHE ?= $(HOME)/.cache/centra
export CARGO_TARGET_DIR ?= $(CENTRA_CACHE)/target

ARGS ?=
SEEDS ?= 0..2000
ROWS ?=
export COUNT

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## compile the programs into bin/
	@scripts/need.sh build
	@scripts/trim-cache.sh
	@cargo build --release --locked --workspace --bins
	@scripts/link-programs.sh

demo: build ## a three-node cluster with data in it that loses its leader before your eyes (ARGS=--once ends by itself)
	@scripts/need.sh demo
	@scripts/demo.sh $(ARGS)

test: ## everything that must hold before a commit; ends with `N passed, N failed`
	@scripts/need.sh build test
	@scripts/trim-cache.sh
	@scripts/test.sh

torture: build ## faults with real processes, as often as promised; hours (ROWS="8 14" for some rows, COUNT=20 for fewer)
	@scripts/need.sh build test
	@scripts/torture.sh $(ROWS)

bench: build ## Chainfire beside etcd into docs/benchmarks.md (ARGS=--quick, ARGS="compare --only put"; ETCD=path)
	@scripts/bench.sh $(ARGS)

package: build ## a .deb, a tarball, an SBOM and their checksums into dist/
	@scripts/need.sh package
	@scripts/package.sh

sim: build ## the deterministic simulator (SEEDS=0..2000)
	@bin/sim --seeds $(SEEDS) $(ARGS)

fmt: ## format the sources
	@cargo fmt --all

clean: ## remove bin/, dist/ and this workspace's compiled crates; compiled dependencies stay
	@rm -rf bin dist
	@cargo clean --release $(addprefix --package ,$(notdir $(wildcard crates/*)))
