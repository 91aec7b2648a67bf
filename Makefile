# SPDX-License-Identifier: Apache-2.0
# The tasks of a developer. Every target first sets up its requirements (Debian packages, .venv, the
# native modules, the guest image), unless they are up to date.

BIN      := .venv/bin
NATIVE   := $(wildcard cython_src/pyvmm_native/*.pyx cython_src/pyvmm_native/*.pxd cython_src/pyvmm_native/*.h)
PYTHON   := setup.py pykvm devices pyvmm guest_images bench tests docs
FUZZ_SECONDS ?= 60
DIST_PYTHONS ?= $(BIN)/python

# The build tools of requirements.lock, in an environment of their own.
UV_BUILD := $(BIN)/uv build --quiet --build-constraints requirements.lock --require-hashes

.DEFAULT_GOAL := help
.PHONY: help demo test trace-processor test-long bench docs docs-links generated screenshots conformance fuzz sanitizers coverage lint lock dist format image stock-kernels debian native clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: native image  ## Boot a Linux guest, inflate and deflate its balloon, and report where its memory is
	@$(BIN)/pyvmm demo

test: native image stock-kernels trace-processor  ## Run all tests; those that need KVM run in the lab if this machine's KVM is unusable
	@$(BIN)/python -m pytest -m "not kvm" -q -n auto --maxprocesses 4 --dist loadfile
	@$(BIN)/python -m tests.with_kvm

# In the environment, LONG_MIB (512) and LONG_TRIES (20) set the size, LONG_SEED repeats a run.
test-long: native image  ## Run the long tests: migrations, snapshots, faults, more kernels (LONG: a pytest -k expression)
	@$(BIN)/python -m tests.kvm.debian_kernels --long
	@$(BIN)/python -m pytest tests/pyvmm -m long -s $(if $(LONG),-k "$(LONG)") || [ $$? -eq 5 ]  # 5: none selected
	@LAB_MIB=4096 LIMIT_S=14400 $(BIN)/python -m tests.with_kvm tests/kvm -m long -s $(if $(LONG),-k "$(LONG)")

bench: native image  ## Compare pyvmm with QEMU and the machine's limits (BENCH_OPTIONS: names, --quick)
	@$(BIN)/pyvmm bench $(BENCH_OPTIONS)

docs: native  ## Build the documentation into build/docs, warnings as errors, and check every link in it
	@$(BIN)/python -m sphinx -q -W --keep-going -j auto -b html docs build/docs
	@PYTHONPATH=docs $(BIN)/python -m pyvmm_docs.check_links build/docs

docs-links: native  ## Follow the documentation's links to other sites (needs a network)
	@$(BIN)/python -m sphinx -q -b linkcheck docs build/docs-links

generated: native  ## Write the manual pages and shell completions in share/
	@PYTHONPATH=docs $(BIN)/python -m pyvmm_docs.generate

screenshots: native image  ## Take the pictures of the scope in docs/_static/scope; large ones in build/screenshots
	@PYTHONPATH=docs $(BIN)/python -m pyvmm_docs.screenshots "$$($(BIN)/pyvmm image where)"

conformance: native image  ## Write docs/reference/conformance.md from the results of the tests it names
	@rm -f build/conformance-*.xml
	-@$(BIN)/python -m pytest -m "conformance and not kvm" -q --junitxml build/conformance-unit.xml
	-@LABS=1 $(BIN)/python -m tests.with_kvm tests/kvm -m "conformance and kvm" --junitxml build/conformance-kvm.xml
	@$(BIN)/python -m tests.conformance.report build/conformance-*.xml

fuzz: native  ## Fuzz guests, snapshots, saved devices, migrations and recordings, each for FUZZ_SECONDS: tests/fuzz/fuzz_*.py
	@$(BIN)/python -m tests.fuzz.run $(FUZZ_SECONDS) $(FUZZ_OPTIONS)

sanitizers: native  ## Run tests and fuzzers (each for FUZZ_SECONDS) with ASan, UBSan and TSan
	@$(BIN)/python -m tests.sanitizers.run $(FUZZ_SECONDS)

coverage: native  ## Measure the branch coverage of devices.virtio, balloon, console and pyvmm.trace; fail below 98 %
	@$(BIN)/coverage run -m pytest -q -m "not kvm" tests/devices tests/conformance tests/fuzz \
		tests/pyvmm/trace tests/pyvmm/qmp/test_trace_commands.py
	@$(BIN)/coverage report

lint: native  ## Check style, types, native code, import contracts, words and docstrings
	@$(BIN)/ruff check $(PYTHON)
	@$(BIN)/ruff format --check $(PYTHON)
	@PATH=$(BIN):$$PATH cython-lint cython_src tests/sanitizers
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q tests/project/test_words.py tests/project/test_docstrings.py

lock: .venv/.ready  ## Renew requirements.lock: the newest versions that pyproject.toml allows, with hashes
	@$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --generate-hashes \
		--no-annotate --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

dist: .venv/.ready  ## Build into dist/ what an index takes: the sdist, a wheel for each of DIST_PYTHONS
	@rm -rf dist build/wheels
	@$(UV_BUILD) --sdist --out-dir dist
	@for python in $(DIST_PYTHONS); do \
		$(UV_BUILD) --wheel --python $$python --out-dir build/wheels dist/*.tar.gz || exit; done
	@PATH=$(BIN):$$PATH auditwheel repair --wheel-dir dist build/wheels/*.whl
	@$(BIN)/twine check --strict dist/*

format: .venv/.ready  ## Format the Python sources
	@$(BIN)/ruff check --fix-only $(PYTHON)
	@$(BIN)/ruff format $(PYTHON)

image: native  ## Build guest.img (cached)
	@$(BIN)/pyvmm image build

stock-kernels: native  ## Download the Debian kernels that the tests boot (kept in the cache)
	@$(BIN)/python -m tests.kvm.debian_kernels

trace-processor: native  ## Download Perfetto's trace processor, for a test, if there is npm (kept in the cache)
	@$(BIN)/python -m tests.pyvmm.trace.trace_processor_download

debian:  ## Run the README's commands on a minimal Debian, in a chroot (as root; SUITE: trixie, AS: root or user)
	@scripts/check-debian $(or $(SUITE),trixie) $(or $(AS),root)

native: .venv/.native

clean:  ## Remove everything built in this tree; caches outside it stay (see `pyvmm image where`)
	rm -rf .venv build dist demo-output .fuzz .coverage *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f cython_src/pyvmm_native/*.c cython_src/pyvmm_native/*.so

.venv/.ready: pyproject.toml requirements.lock debian-packages.txt scripts/setup
	@scripts/setup

.venv/.native: .venv/.ready $(NATIVE)
	@PYTHONWARNINGS=ignore flock .venv/.native.lock \
		$(BIN)/python -c 'from setuptools import setup; setup()' -q build_ext --inplace
	@touch $@
