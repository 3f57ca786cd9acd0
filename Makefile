# `make` says what there is. Everything runs from a virtual environment that make fills itself, from pinned versions.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PORT ?= 8000
EXIT ?=
ARGS ?=
VENV ?= .venv
PEERS_VENV ?= .venv-peers
, := ,
TORCH := 2.13.0
# Found when first needed: python3 if it is new enough, else a newer one that goes by its version.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then command -v $$python; break; fi; done)
# FAISS for the GPU where there is one (`FAISS=cpu` overrules): its flavours exclude each other.
FAISS ?= $(shell if nvidia-smi -L >/dev/null 2>&1 || test -e /dev/nvidiactl; then echo gpu; else echo cpu; fi)
OTHER_FAISS = $(if $(filter cpu,$(FAISS)),gpu,cpu)

# An environment is up to date when the stamp of its declarations and of its FAISS lies in it. `run` is what the demo
# needs, `dev` all the rest, too.
KEY := $(shell cat setup.cfg pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
RUN = $(VENV)/.with-run-$(FAISS)-$(KEY)
DEV = $(VENV)/.with-dev-$(FAISS)-$(KEY)
PEERS = $(PEERS_VENV)/.with-$(shell cksum benchmarks/peers/requirements.txt | cut -d' ' -f1)

# Of what pip says, what shows that it moves: on a terminal one line that changes, elsewhere the large downloads.
progress = while IFS= read -r line; do case $$line in \
	*Collecting\ *) line=$${line\#*Collecting }; if test -t 1; then \
		printf '\r\033[K  %s' "$${line%%[^a-zA-Z0-9_.-]*}"; fi;; \
	*Downloading\ *\ MB\)) if test ! -t 1; then printf '  %s\n' "$${line\#*Downloading }"; fi;; \
	"Installing collected"*) if test -t 1; then printf '\r\033[K'; fi; \
		set -- $$line; printf '  unpacking %d packages …\n' "$$(($$\# - 3))";; \
	esac; done

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export RAY_USAGE_STATS_ENABLED ?= 0
# Tests and demo start dozens of processes, each of which would compile a thousand files anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## say what there is
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1 \2/p' Makefile | while read -r target text; do \
		printf '  %-17s %s\n' "$$target" "$$text"; done

.PHONY: demo
demo: $(RUN) ## MovieLens 1M from raw ratings to live answers; EXIT=1 stops it all at the end, PORT=8000
	@$(VENV)/bin/python -m recsys.demo --port $(PORT) $(if $(filter-out 0 no false,$(EXIT)),--exit)

.PHONY: stop
stop: ## stop the server that `make demo` left up
	@test ! -x $(VENV)/bin/python || $(VENV)/bin/python -m recsys.demo --port $(PORT) --stop

.PHONY: test
test: $(DEV) ## every test; RECSYS_DATA_DIR=folder adds those on real data, ARGS= goes to pytest
	@$(VENV)/bin/python -m pytest -rs --durations=10 $(ARGS)

.PHONY: lint
lint: $(DEV) ## ruff, mypy and the rules for imports
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-logo --no-cache

.PHONY: format
format: $(DEV) ## let ruff mend what it can
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

.PHONY: notebooks
notebooks: $(DEV) ## run the notebooks on the demo's data, and render them into build/notebooks
	@test -n "$${RECSYS_REGISTRY-}" || test -e demo/registry/CURRENT || \
		{ echo "Run make demo EXIT=1 first, or set RECSYS_REGISTRY and RECSYS_DATASET to full paths" >&2; exit 1; }
	@for notebook in notebooks/*.ipynb; do began=$$SECONDS; \
		$(VENV)/bin/jupyter nbconvert --log-level ERROR --execute --to html --output-dir build/notebooks \
			--TemplateExporter.extra_template_basedirs notebooks --template page $$notebook; \
		echo "build/$${notebook%.ipynb}.html  took $$((SECONDS - began)) s"; done

.PHONY: venv
venv: $(DEV) ## the environment for everything, in .venv; FAISS=cpu or gpu overrules what is found

.PHONY: benchmarks-peers
benchmarks-peers: $(PEERS) ## the environment of the libraries we compare ourselves with, in .venv-peers

.PHONY: constraints
constraints: ## choose the newest versions that setup.cfg allows, for CPU and GPU, and write constraints.txt
	@$(call need_python)
	@rm -rf build/constraints && mkdir -p build/constraints
	@$(PYTHON) -m venv build/constraints/venv
	@echo "Resolving for the CPU, then for the GPU: some minutes …"
	@build/constraints/venv/bin/pip install -q --upgrade pip
	@cd build/constraints && venv/bin/pip install -q --dry-run --ignore-installed --report cpu.json \
		-e '../..[cpu,dev]' torch==$(TORCH)
	@cd build/constraints && venv/bin/python ../../.ci/constraints.py cpu.json > cpu.txt
	@# Three equals signs: the very build without a suffix, which brings CUDA, where an index offers CPU builds, too.
	@cd build/constraints && venv/bin/pip install -q --dry-run --ignore-installed --report gpu.json \
		-c cpu.txt -e '../..[gpu,dev]' torch===$(TORCH)
	@build/constraints/venv/bin/python .ci/constraints.py build/constraints/cpu.json build/constraints/gpu.json \
		> build/constraints/all.txt
	@mv build/constraints/all.txt constraints.txt
	@echo "constraints.txt: $$(grep -c == constraints.txt) versions; run make test before you commit it"

.PHONY: clean
clean: ## remove caches and what was built; the environments stay (rm -r .venv .venv-peers), and so does demo/
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

define need_python
	test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and none was found as python3, python3.11, … \
	python3.14. Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
endef

# $(1) folder of the environment. One that exists is kept: pip brings it up to date.
define make_venv
	$(need_python)
	test -x $(1)/bin/pip || { echo "Making $(1) with $(PYTHON)"; $(PYTHON) -m venv $(1) || { rm -rf $(1); \
	echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; }
endef

# $(1) extras, $(2) the stamp to leave.
define install
	echo "Installing recsys[$(1)]"
	rm -f $(VENV)/.with-*
	$(VENV)/bin/pip uninstall -q -y faiss-$(OTHER_FAISS) 2>/dev/null
	began=$$SECONDS; $(VENV)/bin/pip install --no-compile --constraint constraints.txt -e '.[$(1)]' | $(progress); \
	echo "  took $$((SECONDS - began)) s"
	touch $(2)
endef

$(RUN):
	@$(call make_venv,$(VENV))
	@$(call install,$(FAISS),$@)

$(DEV):
	@$(call make_venv,$(VENV))
	@$(call install,$(FAISS)$(,)dev,$@)
	@touch $(RUN)

$(PEERS): benchmarks/peers/requirements.txt
	@$(call make_venv,$(PEERS_VENV))
	@$(PEERS_VENV)/bin/pip install --no-compile -r benchmarks/peers/requirements.txt | $(progress)
	@touch $@
