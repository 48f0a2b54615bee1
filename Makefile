# svmstream: two commands do everything on a fresh Debian machine:
#   make inspect   make a virtual environment, install, decode a capture
#   make test      install what the tests need and run them all

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
STAMP := $(VENV)/.compiled
CAPTURE := streams/qemu10.0-linux6.12-nested-npt.mig.zst

.DEFAULT_GOAL := help

.PHONY: help
help:  ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1	/p' $(MAKEFILE_LIST) | expand -t 14

$(INSTALLED): pyproject.toml setup.py $(wildcard qemu_svm/stream/ram/_ram*.[ch])
	@PYTHON="$(PYTHON)" tools/need-venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check \
		--config-settings editable_mode=compat --editable '.[dev]'
	@touch $@

# Where PYTHONDONTWRITEBYTECODE is set, every start would compile all modules anew.
$(STAMP): $(INSTALLED) $(shell find qemu_svm -name '*.py') $(wildcard qemu_svm/render/html/templates/*.*)
	@$(BIN)/python -m compileall -q qemu_svm
	@$(BIN)/python -c 'from qemu_svm.render.html.engine import compile_all; compile_all()'
	@touch $@

.PHONY: install
install: $(STAMP)  ## make the virtual environment with svmstream in it

.PHONY: inspect
inspect: $(STAMP)  ## decode a real capture
	$(BIN)/svmstream inspect $(CAPTURE)

.PHONY: lint
lint: $(STAMP)  ## ruff, mypy --strict, the schemas of JSON documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/python tools/schemas.py --check

# The tests boot the kernels of these two suites; single kernels, by their exact version, they
# fetch from a mirror of their own.
.PHONY: needs
needs: $(STAMP)
	@tools/need-packages qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils as:binutils \
		"gcc:gcc libc6-dev" gpg:gpg lzop:lzop gdb:gdb makedumpfile:makedumpfile strace:strace \
		tmux:tmux chromium:chromium
	@tools/need-compiled $(VENV)
	@tools/need-libvirt $(abspath $(VENV))
	@tools/fetch-oracle || echo "QEMU's own script could not be fetched; the comparison with it will be skipped"
	$(BIN)/svmstream lab build --kernel 6.1 --kernel 6.12

.PHONY: test
test: needs  ## install what the tests need and run them all
	$(BIN)/pytest -n 2

.PHONY: test-quick
test-quick:  ## the tests that need neither a QEMU, nor the box, nor the network
	@PYTHON="$(PYTHON)" tools/need-venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	$(BIN)/pytest -n 2 -m "not qemu and not box"

.PHONY: docs
docs: $(STAMP)  ## the documentation as a site in build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file tools/docs/mkdocs.yml

.PHONY: matrix
matrix: $(STAMP)  ## save on each kernel and QEMU, restore on each other one (half an hour)
	@tools/need-packages qemu-system-x86_64:qemu-system-x86 as:binutils
	$(BIN)/svmstream lab matrix --all-pairings $(if $(SCHEDULER),--scheduler $(SCHEDULER))

.PHONY: conform
conform: $(STAMP)  ## 5000 random restore sequences on each kernel, model against kernel (hours)
	@tools/need-packages qemu-system-x86_64:qemu-system-x86
	for kernel in 5.10 6.1 6.12 7.2; do \
		nice $(BIN)/svmstream lab conform --kernel $$kernel --sequences 5000 --seed 1 \
			$(if $(SCHEDULER),--scheduler $(SCHEDULER)) \
			streams/*-nested*.mig.zst streams/guests/*.mig.zst || exit; \
	done

.PHONY: fuzz
fuzz: $(STAMP)  ## two million inputs, guided by coverage, for everything that reads input (hours)
	$(BIN)/pip install --quiet --disable-pip-version-check 'atheris>=2.3'
	$(BIN)/python tools/fuzz.py $(TARGETS) $(if $(SCHEDULER),--scheduler $(SCHEDULER))

.PHONY: cluster
cluster: $(STAMP)  ## all that takes --scheduler, without and with workers, of which one is killed (some minutes)
	@tools/need-packages qemu-system-x86_64:qemu-system-x86 as:binutils
	$(BIN)/python tools/cluster.py

.PHONY: sanitize
sanitize: $(STAMP)  ## the compiled parts under AddressSanitizer and UndefinedBehaviorSanitizer
	@tools/need-packages "gcc:gcc libc6-dev"
	tools/sanitize $(VENV)

.PHONY: boundaries
boundaries: $(STAMP)  ## both sides of boundaries in the table of changes, on 26 kernels (half an hour, 2.5 GiB)
	@tools/need-packages qemu-system-x86_64:qemu-system-x86
	$(BIN)/python tools/boundaries.py

.PHONY: coverage
coverage: needs  ## the tests with branch coverage
	$(BIN)/pytest -n 2 --cov --cov-report=term

.PHONY: bench
bench: $(STAMP)  ## start-up, decoding, RAM, guest memory, recording, beside other tools
	@tools/need-compiled $(VENV)
	@tools/fetch-oracle || echo "QEMU's own script could not be fetched; it is left out"
	$(BIN)/python tools/bench.py
	$(BIN)/python tools/bench_ram.py
	$(BIN)/python tools/bench_memory.py
	@tools/need-packages "gcc:gcc libc6-dev" qemu-system-x86_64:qemu-system-x86
	$(BIN)/python tools/bench_record.py
	$(BIN)/python tools/bench_vcpus.py
	$(BIN)/python tools/bench_survey.py

.PHONY: growth
growth: $(STAMP)  ## twice the input, at most 2.2 times the time, for every generator (some minutes)
	@tools/need-compiled $(VENV)
	$(BIN)/python tools/growth.py

.PHONY: cores
cores: $(STAMP)  ## cores of a Linux in Linux, opened by every debugger (a quarter of an hour, 2 GiB)
	@tools/need-packages crash:crash makedumpfile:makedumpfile gdb:gdb readelf:binutils
	$(BIN)/pip install --quiet --disable-pip-version-check drgn capstone volatility3
	$(BIN)/python tools/cores.py

.PHONY: witness
witness: $(STAMP)  ## every capture on every kernel: what the processor is given
	@tools/need-packages "gcc:gcc libc6-dev"
	$(BIN)/python tools/witness.py

.PHONY: recorded
recorded: $(STAMP)  ## restores on each kernel, recorded by eBPF and by ptrace (some minutes, 1 GiB)
	@tools/need-packages qemu-system-x86_64:qemu-system-x86 as:binutils
	$(BIN)/python tools/recorded.py

.PHONY: trials
trials: $(STAMP)  ## patches whose effect is known, on two kernels, and a share that is attacked (half an hour, 1 GiB)
	@tools/need-packages qemu-system-x86_64:qemu-system-x86
	$(BIN)/python tools/trials.py

.PHONY: selftests
selftests: $(STAMP)  ## the KVM selftests of KERNELS in the box, recorded and judged (an hour each, 1 GiB)
	@tools/need-packages qemu-system-x86_64:qemu-system-x86 as:binutils "gcc:gcc libc6-dev" xz:xz-utils
	$(BIN)/python tools/selftests.py $(foreach kernel,$(KERNELS),--kernel $(kernel))

.PHONY: clean
clean:  ## remove everything that was made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* \
		qemu_svm/stream/ram/_ram*.so
