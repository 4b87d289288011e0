# SPDX-License-Identifier: GPL-2.0
# The front door of the build: every target is a call of scripts/xb.py, where the logic is. Kbuild describes the module.

KVER ?=
KDIR ?=
DESTDIR ?=
prefix ?=
MODE ?=
BENCH ?=
export KVER KDIR XB_MIRROR
XB := python3 scripts/xb.py

.PHONY: module kernel check check-host check-nested check-debug check-long check-build-all fmt demo bench install uninstall clean distclean help

module: ## build the module for KVER (the default target): build/module/KVER/xen-blkback-rs.ko
	@$(XB) module

kernel: ## only prepare the kernel tree of KVER: build/kernel/KVER
	@$(XB) kernel

check: ## run all checks and tests; the last line says how many passed and failed
	@$(XB) check

check-host: ## only the static checks and the protocol crate's tests
	@$(XB) check --host

check-nested: ## only the tests that run in dom0 under an emulated Xen
	@$(XB) check --nested

check-debug: ## the nested tests on a dom0 kernel with KASAN, lockdep, kmemleak and others; takes long
	@$(XB) check-debug

check-long: ## an hour of fuzzing, the long forms of the tests that have one, then breaks the code to see them fail; some hours
	@$(XB) check-long

check-build-all: module ## build against the newest kernel of another series too
	@$(XB) check-second

fmt: ## format the sources: Rust by the kernel's configuration, Python by ruff.toml
	@$(XB) fmt

demo: ## boot Xen and a stock dom0 under QEMU and show guests on the module's disks
	@$(XB) demo

bench: ## measure the module beside its peers, in one boot for each MODE (timed exact); BENCH='--help' shows more
	@$(XB) bench -- $(if $(MODE),--mode $(MODE)) $(BENCH)

install: ## install module, modprobe.d file and hotplug helper for KVER below DESTDIR
	@$(XB) install --dest '$(DESTDIR)$(or $(prefix),/)'

uninstall: ## remove what install put there
	@$(XB) uninstall --dest '$(DESTDIR)$(or $(prefix),/)'

clean: ## remove the module's build output
	@$(XB) clean

distclean: ## remove everything that was built (build/)
	@$(XB) distclean

help: ## this list
	@echo 'make [TARGET] [KVER=release | KDIR=prepared kernel tree]'; echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 20
	@echo; echo 'KVER: a Debian 13 (backports) kernel; default: what linux-image-amd64 of backports is, or on Debian 13'
	@echo '      the running one. `scripts/xb.py list` shows all, `scripts/xb.py kver` the default.'
	@echo 'XB_MIRROR: the package archive (http://deb.debian.org/debian). XB_JOBS: parallel jobs (all cores).'
