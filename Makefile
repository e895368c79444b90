# One word per task. Every target makes and fills .venv first, so a fresh clone needs nothing but Python 3.11+ and make.
PYTHON ?= python3
EXTRAS ?= dev
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.filled
GENERATED := service/api/grpc/generated
PROTOS := proto/inference.proto proto/axon_v1.proto
.DEFAULT_GOAL := help
.PHONY: help install demo test compose-test store-test soak faults-short faults conformance-short conformance fuzz check format proto bench constraints clean

help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
	  uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[$(EXTRAS)]'; \
	else \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'; \
	fi
	@touch $(STAMP)

install: $(STAMP)  ## make .venv and fill it

demo: $(STAMP)  ## train real handwritten digits through the queue, serve them, predict
	$(BIN)/python examples/demo.py

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest -q -n auto --dist worksteal

fuzz: $(STAMP)  ## read changed bundles for a while, then 240 000 numbers in JSON: make fuzz SECONDS=60
	$(BIN)/python -m tests.fuzz $(or $(SECONDS),60)
	$(BIN)/python -m tests.fuzz.numbers

soak: $(STAMP)  ## press a server for a long time: changes under traffic, memory, hostile clients (forty minutes)
	$(BIN)/python -m tests.lifecycle $(or $(SECONDS),600)
	$(BIN)/python -m tests.soak $(or $(SECONDS),1200)
	$(BIN)/python -m tests.soak.rounds 200
	$(BIN)/python -m tests.hostile $(or $(SECONDS),600)

faults-short: $(STAMP)  ## kill everything at every point of a job's life, cancel races, a soak (minutes)
	FAULTS=short $(BIN)/python -m pytest -q -n 2 --dist loadfile tests/faults

faults: $(STAMP)  ## the same with Redis or the API restarted at that moment; prints the table
	FAULTS=whole $(BIN)/python -m pytest -q tests/faults

store-test: $(STAMP)  ## workers and replicas with nothing in common but a bucket; old workers under a new API (minutes)
	STORE=whole $(BIN)/python -m pytest -q tests/e2e/test_object_store.py tests/e2e/test_version_skew.py

conformance-short: $(STAMP)  ## a real inference client, tritonclient, against the server (a minute)
	$(BIN)/python -m tests.conformance --short

conformance: $(STAMP)  ## every inference client, each in an environment of its own; prints the table (minutes)
	$(BIN)/python -m tests.conformance

compose-test: $(STAMP)  ## build the images, run docker-compose.yml and restart or kill each part (minutes; needs a Docker engine)
	COMPOSE=whole $(BIN)/python -m pytest -q -s tests/e2e/test_compose.py

check: $(STAMP)  ## lint, types, import contracts, generated code, the Helm chart
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.generated_protobuf
	$(BIN)/python -m tests.chart

format: $(STAMP)  ## format the code
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

proto: $(STAMP)  ## regenerate the protobuf code from proto/
	$(BIN)/python -m grpc_tools.protoc -I$(GENERATED)=proto --python_out=. --pyi_out=. --grpc_python_out=. \
	  $(addprefix $(GENERATED)/,$(notdir $(PROTOS)))

bench: $(STAMP)  ## run the benchmarks
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/layers.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/overload.py
	$(BIN)/python benchmarks/jobs.py
	$(BIN)/python benchmarks/recovery.py
	$(BIN)/python benchmarks/scale.py

constraints:  ## pin every dependency again (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --all-extras pyproject.toml -o constraints.txt

clean:  ## remove what the targets made
	rm -rf $(VENV) .venv-conformance .venv-peers build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
