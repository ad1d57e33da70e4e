# `make preview` and `make test` work on a fresh Debian 12 with a Rust toolchain and python3.

target := $(or $(CARGO_TARGET_DIR),target)
prompt := A red ball bounces on the beach
# The execution provider of `make preview`, such as openvino or cuda:1. TensorRT is used with the libraries of CUDA.
EP :=
provider := $(filter-out auto cpu,$(patsubst tensorrt,cuda,$(firstword $(subst :, ,$(EP)))))
# WebGPU computes on a software driver where the set-up has found no GPU.
webgpu_environment := $(abspath $(target))/providers/webgpu/env.sh
software_driver = $(if $(filter webgpu,$(provider)),test ! -e $(webgpu_environment) || . $(webgpu_environment); )
# Clippy and all tests have the same features, so that nothing is built twice.
cargo_features := --features rushes/whip

.PHONY: help setup preview test test-long test-providers test-clients test-proxies bench bench-gpu package golden
.DEFAULT_GOAL := help

help:
	@echo 'make preview   installs what is missing, builds, and writes preview.mp4'
	@echo 'make preview EP=openvino   does it with an execution provider, which is installed too: see docs/devices.md'
	@echo 'make test      installs what is missing and runs all tests but those of execution providers'
	@echo 'make test-long also runs the long forms of the tests, which make test skips'
	@echo 'make test-providers runs the tests that need execution providers; with SMOKE=1 only the short ones, and with'
	@echo '               REQUIRE=openvino,webgpu those providers must be there'
	@echo 'make test-clients runs the packages openai, dashscope, litellm and schemathesis against the server; with SMOKE=1'
	@echo '               only the newest openai and dashscope, and few requests of schemathesis'
	@echo 'make test-proxies runs the examples for nginx and Caddy in docs/serve.md in front of the server; both must be'
	@echo '               installed, and WAIT=SECONDS sets the longest wait'
	@echo 'make bench     times the three graphs of a model on this machine'
	@echo 'make bench-gpu times CUDA and TensorRT on an NVIDIA GPU, in 15 minutes (ARGS=...)'
	@echo 'make package   packages every crate and builds each, the program too, from its archive'
	@echo 'make golden    regenerates the golden files with diffusers (large download)'

setup:
	@scripts/setup.sh

preview:
	@scripts/setup.sh $(provider)
	cargo build --locked --release --package rushes --bin rushes --features embed-mini
	$(software_driver)$(target)/release/rushes generate "$(prompt)" -o preview.mp4 $(if $(EP),--ep $(EP))

# Runs a command and prints how many seconds it took: $(call timed,NAME,COMMAND).
define timed
@echo '$(2)'
@start=$$(date +%s); $(2) || exit $$?; echo "seconds for $(1): $$(( $$(date +%s) - start ))"
endef

test:
	@scripts/setup.sh tests
	$(call timed,format,cargo fmt --all --check)
	$(call timed,clippy,cargo clippy --locked --workspace --all-targets $(cargo_features) -- -D warnings)
	$(call timed,clippy of provider tests,cargo clippy --locked --workspace --test providers $(cargo_features) -- -D warnings)
	$(call timed,docs,RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps $(cargo_features))
	$(call timed,tests,cargo test --locked --workspace $(cargo_features))

# Also runs the ignored tests: the long forms of tests that `make test` runs with a small sample.
test-long:
	@scripts/setup.sh tests
	$(call timed,all tests,cargo test --locked --workspace $(cargo_features) -- --include-ignored)

# Providers that are not installed are skipped with the reason, unless REQUIRE names them.
test-providers:
	$(call timed,provider tests,REQUIRE=$(REQUIRE) SMOKE=$(SMOKE) scripts/test-providers.sh $(cargo_features))

# Exactly what `make test` builds: with other targets, cargo chooses other features, and builds everything again.
build_program := cargo test --locked --workspace $(cargo_features) --no-run

# Python packages, unchanged, as clients of the server, and requests that are made from its description.
test-clients:
	@scripts/setup.sh tests
	$(call timed,build,$(build_program))
	$(call timed,clients,SMOKE=$(SMOKE) scripts/test-clients.sh $(target)/debug/rushes-under-test)
	$(call timed,schema,scripts/test-schema.sh $(target)/debug/rushes-under-test $(if $(SMOKE),2))

# Needs nginx, Caddy, curl and openssl, which it does not install.
test-proxies:
	@scripts/setup.sh tests
	$(call timed,build,$(build_program))
	$(call timed,proxies,WAIT=$(WAIT) scripts/test-proxies.sh $(target)/debug/rushes-under-test)

bench: setup
	cargo bench --locked --package benches

# On a machine with an NVIDIA GPU. The building is not part of the minutes.
bench-gpu: setup
	cargo build --locked --release --package rushes --bin rushes --features embed-mini
	python3 benches/gpu/run.py --rushes $(target)/release/rushes $(ARGS)

# Cargo builds each package from its archive, with the others' archives as dependencies.
package: setup
	$(call timed,package,CARGO_TARGET_DIR=$(target)/package-build cargo package --locked --workspace --exclude tests --exclude benches --exclude fuzz-targets)
	$(target)/package-build/debug/rushes --version

golden: setup
	python3 -m venv $(target)/golden-venv
	$(target)/golden-venv/bin/pip install --requirement tests/golden/requirements.txt
	$(target)/golden-venv/bin/python tests/golden/make.py
