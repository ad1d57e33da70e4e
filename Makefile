# `make preview` and `make test` work on a fresh Debian 12 with a Rust toolchain and python3.

target := $(or $(CARGO_TARGET_DIR),target)
prompt := A red ball bounces on the beach

.PHONY: help setup preview test bench golden
.DEFAULT_GOAL := help

help:
	@echo 'make preview   installs what is missing, builds, and writes preview.mp4'
	@echo 'make test      installs what is missing and runs everything CI runs'
	@echo 'make bench     times the three graphs of a model on this machine'
	@echo 'make golden    makes the golden files again with diffusers (large download)'

setup:
	@scripts/setup.sh

preview: setup
	cargo build --locked --release --package runtime --bin rushes
	$(target)/release/rushes generate "$(prompt)" -o preview.mp4

test:
	@scripts/setup.sh tests
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --features runtime/whip -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps
	cargo test --locked --workspace --features runtime/whip

bench: setup
	cargo bench --locked --package benches

golden: setup
	python3 -m venv $(target)/golden-venv
	$(target)/golden-venv/bin/pip install --requirement tests/golden/requirements.txt
	$(target)/golden-venv/bin/python tests/golden/make.py
