# Every target sets up what it needs: a virtual environment in .venv and the page assets in static/node_modules,
# both from lock files with hashes. `make locks` renews the Python ones from the .in files; it needs uv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKS := requirements.txt requirements-demo.txt requirements-dev.txt

.PHONY: demo test bench lint setup locks clean

demo: $(VENV)/demo.ready static/node_modules/ready
	$(BIN)/python -m demo $(ARGS)

test: setup lint
	$(BIN)/python -m pytest $(ARGS)

bench: $(VENV)/demo.ready static/node_modules/ready
	$(BIN)/python -m bench $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.9 jumpserver.py

setup: $(VENV)/dev.ready static/node_modules/ready

$(VENV)/%.ready: requirements-%.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r $<
	touch $@

static/node_modules/ready: static/package-lock.json
	cd static && npm ci --no-audit --no-fund --loglevel=error
	touch $@

locks:
	for lock in $(LOCKS); do uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.9 \
		--no-annotate --custom-compile-command "make locks" -o $$lock $${lock%.txt}.in || exit; done

clean:
	rm -rf $(VENV) static/node_modules
