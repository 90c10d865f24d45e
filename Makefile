# Every target does its own set-up; the logic is in ops/dev/*.py. Works with GNU make 3.81 and BSD userland.
# ARGS goes to the target's program: make test ARGS="-k journal".  PYTHON=... names the Python for set-up.

SHELL = /bin/sh
ARGS =
# Only `make PYTHON=...` counts; a PYTHON in the caller's environment does not.
ifneq ($(origin PYTHON),command line)
override PYTHON =
endif
GO = @RAFTREG_SETUP_PYTHON='$(PYTHON)' /bin/sh ops/dev/start.sh

.PHONY: help run test test-all check sim chaos bench soak backup-load up down deps lock clean

help:
	@echo 'make run       the story: a registry and two zones, broken and healed before your eyes (needs a minute)'
	@echo 'make up        start the development cluster (3 registry peers, 2 zones)'
	@echo 'make down      stop it'
	@echo 'make test      all tests that fit in six minutes'
	@echo 'make test-all  those and the slow ones'
	@echo 'make check     lint, format, types, import rules, locks'
	@echo 'make sim       schedules of faults on simulated clusters: SEEDS=50 BASE=0 PEERS=3|5'
	@echo 'make chaos     break a real cluster under load, heal it, judge it: TIME=60 SEED= FAULTS=kill,pause WORKLOAD=register,set'
	@echo 'make bench     benchmarks'
	@echo 'make soak      measured runs with kills, restarts, transfers, a million images, feed consumers (ARGS: which ones)'
	@echo 'make backup-load  daily backups of many servers, with outages (ARGS: --help tells)'
	@echo 'make deps      install what tests can use beyond Python packages (the only target that asks apt-get)'
	@echo 'make lock      renew the lock files in ops/locks from pyproject.toml (needs uv and the network)'
	@echo 'make clean     stop the development cluster, remove environments and caches'

run:
	$(GO) run $(ARGS)

test:
	$(GO) test $(ARGS)

test-all:
	$(GO) test-all $(ARGS)

check:
	$(GO) check $(ARGS)

sim:
	$(GO) sim $(if $(SEEDS),--seeds $(SEEDS)) $(if $(BASE),--base $(BASE)) $(if $(PEERS),--peers $(PEERS)) $(ARGS)

chaos:
	$(GO) chaos $(if $(TIME),--time $(TIME)) $(if $(SEED),--seed $(SEED)) $(if $(FAULTS),--faults $(FAULTS)) $(if $(WORKLOAD),--workload $(WORKLOAD)) $(ARGS)

bench:
	$(GO) bench $(ARGS)

soak:
	$(GO) soak $(ARGS)

backup-load:
	$(GO) backup-load $(ARGS)

up:
	$(GO) up $(ARGS)

down:
	$(GO) down $(ARGS)

deps:
	$(GO) deps $(ARGS)

lock:
	$(GO) lock $(ARGS)

clean:
	$(GO) clean $(ARGS)
