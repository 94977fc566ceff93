# Every target sets up what it needs, from lock files with hashes: a virtual environment in .venv, the page assets in
# static/node_modules, axe-core and ESLint in tests/node_modules. `make locks` renews the Python ones from the .in
# files; it needs uv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKS := requirements.txt requirements-demo.txt requirements-dev.txt requirements-postgresql.txt

# `make dist` also has pip fetch the runtime dependencies into build/wheels, by the same hashes.
.PHONY: demo dist test bench soak screenshots lint setup locks clean

demo: $(VENV)/demo.ready static/node_modules/ready
	$(BIN)/python -m demo $(ARGS)

dist: $(VENV)/demo.ready static/node_modules/ready
	$(BIN)/python deploy/dist.py

test: setup lint
	$(BIN)/python -m pytest $(ARGS)

bench: $(VENV)/demo.ready static/node_modules/ready
	$(BIN)/python -m bench $(ARGS)

soak: $(VENV)/demo.ready static/node_modules/ready
	$(BIN)/python -m bench.soak $(ARGS)

screenshots: setup
	$(BIN)/python -m demo.screenshots

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.9 jumpserver.py
	tests/node_modules/.bin/eslint --config tests/eslint.config.mjs static

setup: $(VENV)/dev.ready static/node_modules/ready tests/node_modules/ready

$(VENV)/%.ready: requirements-%.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r $<
	touch $@

%/node_modules/ready: %/package-lock.json
	cd $* && npm ci --no-audit --no-fund --loglevel=error
	touch $@

locks:
	for lock in $(LOCKS); do uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.9 \
		--no-annotate --custom-compile-command "make locks" -o $$lock $${lock%.txt}.in || exit; done

clean:
	rm -rf $(VENV) build dist static/node_modules tests/node_modules
