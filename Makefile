# Everything runs in a virtual environment that `make` sets up by itself.
PYTHON ?= python3.11
VENV ?= .venv
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/installed
# Compiling takes most of the time, on one core: two processes, each with whole files of tests.
TWO = -n 2 --dist loadfile

export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help demo test test-all lint format clean

help:
	@echo "make demo      meta-train on sine curves, in three minutes"
	@echo "make test      ruff and the tests"
	@echo "make test-all  the slow tests as well"
	@echo "make format    let ruff format the code"
	@echo "make clean     remove the virtual environment"

demo: $(INSTALLED)
	$(RUN) -m experiments.demo

test: lint
	$(RUN) -m pytest $(TWO)

test-all: lint
	$(RUN) -m pytest $(TWO) -m "slow or not slow"

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(INSTALLED)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV)

$(INSTALLED): requirements.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "Python 3.11 is needed. Install it, or say where it is: make PYTHON=/path/to/python3.11"; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
