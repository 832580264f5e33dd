# Two commands matter: `make demo` and `make test`. Both set the machine up first.
SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin
# Debian packages that the gate needs at run time, and those that only its tests use.
RUN_TOOLS  := bwrap:bubblewrap nft:nftables ip:iproute2 libseccomp.so.2:libseccomp2 curl:curl wg:wireguard-tools wireguard-go:wireguard-go
TEST_TOOLS := openssl:openssl git:git ssh:openssh-client sshd:openssh-server tcpdump:tcpdump dig:bind9-dnsutils tmux:tmux setpriv:util-linux wget:wget npm:npm nc.openbsd:netcat-openbsd /usr/lib/python3/dist-packages/requests:python3-requests /usr/lib/python3/dist-packages/httpx:python3-httpx /usr/lib/python3/dist-packages/socks.py:python3-socks systemd-analyze:systemd haproxy:haproxy tinyproxy:tinyproxy-bin apache2:apache2-bin squid:squid-openssl chromium:chromium node:nodejs iperf3:iperf3 crun:crun

# What the virtual machine of lab-kernel is made of.
KERNEL_TOOLS := qemu-system-x86_64:qemu-system-x86 cpio:cpio modprobe:kmod

.PHONY: help demo test lab-kernel lab-long lab-red lint fuzz bench setup setup-test debian-run debian-test clean
help:            ## this list
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  +##' $(MAKEFILE_LIST) | sed -E 's/:.*## ?/\t/' | expand -t16

demo: setup      ## a bubble, a gate and a corporate end on this machine, with real traffic
	@$(BIN)/zonegate demo $(DEMO)

test: setup-test lint ## everything: lint, types, import contract, all tests
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

lab-long: setup-test ## the lab at length (an hour): every process killed at every step of its start, 200 flaps, shortages
	$(BIN)/pytest -s $(or $(LAB),tests/lab/long_life.py)

lab-red: setup-test ## the lab with each row's defence taken out: every test that docs/threats.md names for it must fail (ROWS="N1 N2")
	cd tests && ../$(BIN)/python -m lab.red $(ROWS)

lab-kernel: setup-test ## the kernel's own WireGuard, in a virtual machine that has it; as root
	@.ci/debian $(KERNEL_TOOLS)
	@.ci/kernel .kernel
	$(BIN)/python tests/lab/machine.py .kernel $(BIN)/python tests/lab/kernel_device.py

lint: setup-test ## ruff, mypy strict, the floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: setup-test ## atheris gives junk to the heads of HTTP and SOCKS for FUZZ seconds (300)
	$(BIN)/pip install --quiet --disable-pip-version-check atheris==3.1.0
	cd tests && ../$(BIN)/python explicit_fuzz.py $(or $(FUZZ),300)

bench: setup-test ## what the gate costs in front of a WireGuard tunnel, beside the tunnel alone; as root
	$(BIN)/python bench/wireguard.py $(BENCH)

setup: debian-run $(VENV)/.run ## .venv with zonegate, and the Debian packages it needs
setup-test: debian-run debian-test $(VENV)/.test

$(VENV)/.run: pyproject.toml constraints.txt
	@.ci/venv $(VENV) .
	@touch $@
$(VENV)/.test: pyproject.toml constraints.txt
	@.ci/venv $(VENV) '.[dev,prove]'
	@touch $@ $(VENV)/.run

debian-run:
	@.ci/debian $(RUN_TOOLS)
debian-test:
	@.ci/debian $(TEST_TOOLS)

clean:           ## forget the virtual environment and every cache
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache *.egg-info
