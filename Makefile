# `make help` lists what there is. Everything is installed into .venv, nothing outside the repository.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
BEGAN := $(shell date +%s)
# Without its dependencies: its pin of lmdb needs a C compiler, and only its own trainer imports it.
CN_CLIP := cn_clip==1.6.0

# They wait for servers more than they work. A file's tests stay together: they share servers. In the order
# of their names the longest, of whole stacks, come first.
BESIDE := --numprocesses 3 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo up down status test test-all check bad-inputs fuzz bench faults load machines containers \
	miniature ablation quality proto locks install .build/pb

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.local ## install, start everything, index 2,000 images, search, measure
	@$(BIN)/python -m deploy.demo --began $(BEGAN)

up: $(VENV)/.local ## start the local stack and show its logs; Ctrl-C stops it
	@$(BIN)/python -m deploy.stack up

down: $(VENV)/.local ## stop a local stack that was started elsewhere
	@$(BIN)/python -m deploy.stack down

status: $(VENV)/.local ## show every process of the local stack
	@$(BIN)/python -m deploy.stack status

test: $(VENV)/.dev ## run the tests, real servers included, in under 15 minutes
	@$(BIN)/python -m pytest -m "not slow" $(BESIDE)

test-all: $(VENV)/.dev ## run every test, however long it takes
	@$(BIN)/python -m pytest $(BESIDE)

check: $(VENV)/.dev .build/pb .build/typing ## lint the contract and the code, compare generated code, check types
	$(BIN)/buf lint proto
	diff -r -x __pycache__ .build/pb shared/pb
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=.build/typing $(BIN)/mypy -p cra -p deploy -p tests

bad-inputs: $(VENV)/.dev ## put every bad or odd object there is into a stack; writes docs/bad-inputs.md
	@$(BIN)/python -m tests.bad_inputs

fuzz: $(VENV)/.fuzz ## run the fuzzers, a million executions in all or RUNS=N each (Linux)
	@$(BIN)/python -m tests.fuzz $(if $(RUNS),--runs $(RUNS))

bench: $(VENV)/.dev ## measure beside the alternatives, in about an hour; writes docs/benchmarks.md
	@$(BIN)/python -m tests.bench

faults: $(VENV)/.dev ## break every part of the stack while it works, in under an hour; writes docs/faults.md
	@$(BIN)/python -m tests.faults

load: $(VENV)/.dev ## overload, restart and soak the services, in under 50 minutes; writes docs/load.md
	@$(BIN)/python -m tests.load

machines: $(VENV)/.dev ## kill and cut off one of two of everything, each with an address of its own, in under 30 minutes (Linux, root); writes docs/machines.md
	@$(BIN)/python -m tests.machines

containers: $(VENV)/.dev ## build every image, run compose and check it, with a Docker engine, in under 30 minutes; writes docs/containers.md
	@$(BIN)/python -m tests.containers

miniature: $(VENV)/.local ## tune the text tower on the shipped data with three seeds, in under 15 minutes
	@$(BIN)/python -m cra.services.training.miniature

ablation: $(VENV)/.local ## change one part of the recipe at a time, in under two hours
	@$(BIN)/python -m cra.services.training.miniature.ablation

quality: $(VENV)/.local ## measure each feature of search on against off; writes docs/quality.md
	@$(BIN)/python -m cra.services.training.quality

proto: .build/pb ## generate shared/pb from proto/
	rm -rf shared/pb/cra
	cp -r .build/pb/cra shared/pb/cra

# Every package of an image with its hashes; torch apart, since it comes from several indexes.
LOCK := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-annotate --custom-compile-command 'make locks'

locks: $(VENV)/.dev ## renew deploy/locks, which pin what the images are made of
	$(PIP) 'uv==0.13.9'
	$(LOCK) --extra cli pyproject.toml -o deploy/locks/cli.txt
	$(LOCK) --extra gateway pyproject.toml -o deploy/locks/gateway.txt
	$(LOCK) --extra ingest pyproject.toml -o deploy/locks/ingest.txt
	$(LOCK) --extra web pyproject.toml -o deploy/locks/web.txt
	printf 'torch\ntorchvision\n' > .build/torch.txt
	$(LOCK) --extra embedding --excludes .build/torch.txt pyproject.toml -o deploy/locks/embedding.txt
	grep -ohE 'torch(vision)?==[0-9.]+' pyproject.toml | $(LOCK) - -o deploy/locks/torch.txt
	awk '/^[a-z]/ {keep = !/^(torch|triton|nvidia|cuda)/} keep || /^#/' deploy/locks/torch.txt > deploy/locks/torch_cpu.txt
	$(LOCK) --extra training --excludes .build/torch.txt -c deploy/locks/embedding.txt -c deploy/locks/torch.txt \
		pyproject.toml -o deploy/locks/training.txt
	echo '$(CN_CLIP)' | $(LOCK) --no-deps - -o deploy/locks/cn_clip.txt
	sed -n 's/^requires = \["\(setuptools.*\)"\]/\1/p' pyproject.toml | $(LOCK) - -o deploy/locks/build.txt

install: $(VENV)/.dev ## install everything that development needs

.build/pb: $(VENV)/.dev
	@rm -rf $@ && mkdir -p $@
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iproto \
		--python_out=$@ --grpc_python_out=$@ --mypy_out=quiet:$@ --mypy_grpc_out=quiet:$@ \
		$(shell find proto -name '*.proto')

# The import root `cra` as folders, for mypy: it cannot follow an editable installation's finder.
.build/typing: Makefile
	@rm -rf $@ && mkdir -p $@/cra
	@ln -s ../../../shared ../../../services $@/cra/
	@ln -s ../../../shared/pb/cra/embedding ../../../shared/pb/cra/ingest ../../../shared/pb/cra/search $@/cra/

$(VENV)/.local: pyproject.toml Makefile | $(BIN)/python
	@echo "installing what the local stack needs into $(VENV); the first time takes a minute or more"
	@$(PIP) -e '.[local]'
	@$(PIP) --no-deps '$(CN_CLIP)'
	@touch $@

$(VENV)/.dev: pyproject.toml Makefile | $(BIN)/python
	@echo "installing what development needs into $(VENV); the first time takes a minute or more"
	@$(PIP) -e '.[dev]'
	@$(PIP) --no-deps '$(CN_CLIP)'
	@touch $(VENV)/.local $@

$(VENV)/.fuzz: $(VENV)/.dev
	@$(PIP) -e '.[fuzz]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and $(PYTHON) is not: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { \
		echo "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
