# Everything runs in a virtual environment that `make` sets up by itself.
PYTHON ?= python3.11
VENV ?= .venv
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/installed
# The type checker and the documentation cannot live with TF-Agents: requirements-tools.txt says why.
TOOLS = $(VENV)/tools
TOOLS_INSTALLED = $(TOOLS)/installed
# Tracing and compiling take most of the time, on one core. Three processes, each with whole files
# of tests, keep two cores busy: now and then one waits for a process of its own.
SIDE_BY_SIDE = -n 3 --dist loadfile
# What XLA has compiled stays in memory until the process ends. With the slow tests that is more
# than 24 GB, so every part has two processes of its own.
PARTS = $(filter-out tests/typing/ tests/__pycache__/,$(wildcard tests/*/)) \
  "$(wildcard tests/test_*.py) keras_maml docs/notebooks"
# Runs notebooks as well as tests; their programs import this folder, too.
NOTEBOOKS = PYTHONPATH="$(CURDIR)" $(RUN) -m pytest --nbmake --nbmake-timeout=1800

export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help demo browser-demo test test-all test-matrix lint format docs clean

help:
	@echo "make demo         meta-train on sine curves, in three minutes"
	@echo "make browser-demo a page that learns drawn characters, at http://127.0.0.1:8000"
	@echo "make test         ruff, mypy and the tests"
	@echo "make test-all     the slow tests as well, and all notebooks"
	@echo "make test-matrix  the core's tests on other versions of Python, TensorFlow and Keras"
	@echo "make docs         build the documentation in site/"
	@echo "make format       let ruff format the code"
	@echo "make clean        remove the virtual environment"

demo: $(INSTALLED)
	$(RUN) -m experiments.demo

browser-demo: $(INSTALLED)
	$(RUN) -m examples.browser

# The programs of these tests run for milliseconds: XLA need not optimise them. test-all lets it.
test test-matrix: export XLA_FLAGS = --xla_backend_optimization_level=0

test: lint
	$(NOTEBOOKS) $(SIDE_BY_SIDE) tests keras_maml

test-all: lint
	@failed=0; for part in $(PARTS); do \
	  $(NOTEBOOKS) -n 2 --dist loadfile -m "slow or not slow" $$part || failed=1; \
	done; exit $$failed

# Every environment is kept beside the first; ONLY="3.13-newest" makes one of them alone.
test-matrix:
	.ci/matrix $(VENV)-matrix $(ONLY)

lint: $(INSTALLED) $(TOOLS_INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(TOOLS)/bin/python -m mypy --python-executable $(RUN)

format: $(INSTALLED)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: $(TOOLS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(TOOLS)/bin/python -m mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) $(VENV)-matrix

$(INSTALLED): requirements.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "Python 3.11 is needed. Install it, or say where it is: make PYTHON=/path/to/python3.11"; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(TOOLS_INSTALLED): requirements-tools.txt $(INSTALLED)
	$(RUN) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-tools.txt
	@touch $@
