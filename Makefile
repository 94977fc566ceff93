# Every target sets up what it needs: a virtual environment in .venv, the page assets in static/node_modules, and
# axe-core in tests/node_modules.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test bench lint setup clean

demo: setup
	$(BIN)/python -m demo $(ARGS)

test: setup lint
	$(BIN)/python -m pytest $(ARGS)

bench: setup
	$(BIN)/python -m bench $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.9 jumpserver.py

setup: $(VENV)/ready static/node_modules/ready tests/node_modules/ready

$(VENV)/ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

%/node_modules/ready: %/package-lock.json
	cd $* && npm ci --no-audit --no-fund --loglevel=error
	touch $@

clean:
	rm -rf $(VENV) static/node_modules tests/node_modules
