# `make preview` and `make test` work on a fresh Debian 12 with a Rust toolchain and python3.

target := $(or $(CARGO_TARGET_DIR),target)
prompt := A red ball bounces on the beach

.PHONY: help setup preview test test-long bench package golden
.DEFAULT_GOAL := help

help:
	@echo 'make preview   installs what is missing, builds, and writes preview.mp4'
	@echo 'make test      installs what is missing and runs everything that CI runs'
	@echo 'make test-long also runs the long forms of the tests, which make test skips'
	@echo 'make bench     times the three graphs of a model on this machine'
	@echo 'make package   packages every crate and builds each, the program too, from its archive'
	@echo 'make golden    regenerates the golden files with diffusers (large download)'

setup:
	@scripts/setup.sh

preview: setup
	cargo build --locked --release --package rushes --bin rushes --features embed-mini
	$(target)/release/rushes generate "$(prompt)" -o preview.mp4

# Runs a command and prints how many seconds it took: $(call timed,NAME,COMMAND).
define timed
@echo '$(2)'
@start=$$(date +%s); $(2) || exit $$?; echo "seconds for $(1): $$(( $$(date +%s) - start ))"
endef

test:
	@scripts/setup.sh tests
	$(call timed,format,cargo fmt --all --check)
	$(call timed,clippy,cargo clippy --locked --workspace --all-targets --features rushes/whip -- -D warnings)
	$(call timed,docs,RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --features rushes/whip)
	$(call timed,tests,cargo test --locked --workspace --features rushes/whip)

# Also runs the ignored tests: the long forms of tests that `make test` runs with a small sample.
test-long:
	@scripts/setup.sh tests
	$(call timed,all tests,cargo test --locked --workspace --features rushes/whip -- --include-ignored)

bench: setup
	cargo bench --locked --package benches

# Cargo builds each package from its archive, with the others' archives as dependencies.
package: setup
	$(call timed,package,CARGO_TARGET_DIR=$(target)/package-build cargo package --locked --workspace --exclude tests --exclude benches --exclude fuzz-targets)
	$(target)/package-build/debug/rushes --version

golden: setup
	python3 -m venv $(target)/golden-venv
	$(target)/golden-venv/bin/pip install --requirement tests/golden/requirements.txt
	$(target)/golden-venv/bin/python tests/golden/make.py
