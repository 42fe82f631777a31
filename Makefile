# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up .venv first, once.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.installed
VIDEOS ?=

.PHONY: demo test test-long check format setup browser clean-demo bench bench-peers

demo: $(STAMP)
	$(BIN)/python examples/demo.py --output demo $(if $(VIDEOS),--videos "$(VIDEOS)")

test: $(STAMP) browser
	$(BIN)/pytest

# The pages are tested in a real browser; it comes from the system's packages, which takes root.
browser:
	@command -v chromedriver >/dev/null || (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null)

test-long: $(STAMP)
	mkdir -p benchmarks/logs
	$(BIN)/pytest -q --no-header -m long --durations=0 > benchmarks/logs/test-long.txt 2>&1; status=$$?; cat benchmarks/logs/test-long.txt; exit $$status

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_house.py

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[curation,planner,training,dev]"
	touch $@

clean-demo:
	rm -rf demo

bench: $(STAMP)
	$(BIN)/python benchmarks/results.py

# The loaders that benchmarks/loader.py measures against; an environment of their own, because one of them wants an older NumPy.
bench-peers: $(PEERS_STAMP)

$(PEERS_STAMP): benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/peers.txt
	touch $@
