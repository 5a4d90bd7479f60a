# Thin: each target is one command that can also be typed.
#
#   make CLUSTER_DIR=/some/folder demo     puts the demonstration's cluster elsewhere

CLUSTER_DIR ?=
HALYARD := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)/release/halyard
# What `make drills` is asked for: see docs/failover.md.
DRILLS ?=
# What `make chaos` is asked for: see docs/chaos.md.
CHAOS ?= --minutes 30
DIR := $(if $(CLUSTER_DIR),--dir $(CLUSTER_DIR))

.DEFAULT_GOAL := help
.PHONY: help deps build demo down test regress oracle pairs drills chaos bench lint doc

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## Install the Debian packages that the demonstration, the tests and the benches need
	@cluster/deps.sh demo test regress bench

build: ## Build the release binary
	@cargo build --release --locked --bin halyard

demo: ## Bring up a cluster behind Halyard, kill its primary under load, and show what happens
	@cluster/deps.sh demo
	@$(MAKE) --no-print-directory build
	@$(HALYARD) cluster demo $(DIR)

down: ## Stop the demonstration's cluster and remove its data
	@$(HALYARD) cluster down --purge $(DIR)

test: ## Run all tests, the ones against real clusters included
	@cluster/deps.sh test
	@tests/run.sh

regress: ## Run PostgreSQL's own regression suite directly and through Halyard
	@cluster/deps.sh regress
	@tests/regress/run.sh

pairs: ## Read a million writes back, under each consistency, from standbys that lag and crash
	@cluster/deps.sh test
	@HALYARD_PAIRS=$${HALYARD_PAIRS:-1000000} RUST_TEST_THREADS=1 cargo test --release --locked --test integration -- --nocapture pairs::

drills: ## Switch over, kill and freeze servers under load, and count what clients see of it
	@cluster/deps.sh test
	@cargo test --release --locked --test drills -- $(DRILLS)

chaos: ## Break servers and links by chance for half an hour under every kind of load, and check that nobody is lied to
	@cluster/deps.sh test
	@cargo test --release --locked --test chaos -- $(CHAOS)

oracle: ## Try every statement of PostgreSQL's regression suite that is classed as a read on a hot standby
	@cluster/deps.sh regress
	@HALYARD_ORACLE=full cargo test --locked --test oracle -- --nocapture

bench: ## Measure Halyard beside PgBouncer and direct connections
	@cluster/deps.sh bench
	@benches/run.sh

lint: ## Check formatting and run clippy; warnings are errors
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings

doc: ## Build the code's documentation
	@cargo doc --workspace --no-deps --locked
