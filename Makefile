# The project's habits. `make demo` and `make test` install what they need on first use.
#   PYTHON   interpreter that makes the environment (>= 3.11)
#   VENV     the environment

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --constraint constraints.txt

KMP_BLOCKTIME ?= 0
PIP_DISABLE_PIP_VERSION_CHECK ?= 1
export KMP_BLOCKTIME PIP_DISABLE_PIP_VERSION_CHECK
# Set in many containers; without bytecode every start of Python compiles torch and Flower again, twice the time.
unexport PYTHONDONTWRITEBYTECODE

# Clients of the serving tier that cannot live beside our packages; their tests are skipped without them.
FEDSTILL_CLIENTS ?= $(abspath $(VENV)-clients)
export FEDSTILL_CLIENTS

.PHONY: demo test test-fast clients check docs bench bench-gpu soak fuzz protos clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/fedstill simulate

# Three workers for two cores, since fleets mostly wait, with one thread each; a file stays with one worker, so that
# its fixtures are made once. Fleets come first, on two of the workers: tests/helpers/lanes.py.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-dev
	$(PYTEST)

test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m 'not slow'

clients: $(FEDSTILL_CLIENTS)/.installed

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks/*.py benchmarks/*/*.py docs/*.py examples/*/*.py
	$(BIN)/codespell

# The site lies in site/ afterwards: python -m http.server --directory site
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/students/selection.py
	$(BIN)/python benchmarks/students/bank.py
	$(BIN)/python benchmarks/data/check_speed.py
	$(BIN)/python benchmarks/data/prepare_speed.py
	$(BIN)/python benchmarks/fleet/edge_runtime.py --full-size
	$(BIN)/python benchmarks/fleet/inference_batching.py
	$(BIN)/python benchmarks/fleet/level_choice.py
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/fleet/many_agents.py
	$(BIN)/python benchmarks/fleet/downlink.py
	$(BIN)/python benchmarks/fleet/uplink.py
	$(BIN)/python benchmarks/fleet/clustering.py
	$(BIN)/python benchmarks/fleet/device_costs.py
	$(BIN)/python benchmarks/fleet/fleet_proxy.py
	$(BIN)/python benchmarks/serving/elastic_vit.py
	$(BIN)/python benchmarks/serving/elastic_vit.py --environments
	$(BIN)/python benchmarks/serving/engine_backends.py
	$(BIN)/python benchmarks/serving/reductions.py --quick
	$(BIN)/python benchmarks/serving/proportional_attention.py
	$(BIN)/python benchmarks/students/capture_card.py
	$(BIN)/python benchmarks/students/class_mix.py --out runs/class_mix --markdown docs/results/class_mix.md
	$(BIN)/python benchmarks/serving/serving_decision.py
	$(BIN)/python benchmarks/serving/serving_switching.py
	$(BIN)/python benchmarks/serving/long_collections.py
	$(BIN)/python benchmarks/serving/serving_overhead.py
	$(BIN)/python benchmarks/serving/page_load.py
	$(BIN)/python benchmarks/serving/serving_soak.py
	$(BIN)/python benchmarks/serving/serving_live.py --out runs/serving_live/results --markdown docs/results/serving_live.md
	$(BIN)/python benchmarks/serving/serving_baselines.py --out runs/serving_live/baselines.json
	$(BIN)/python benchmarks/serving/two_trunks.py --out runs/serving_live/two_trunks.json
	$(BIN)/python benchmarks/serving/trunk_memory.py
	$(BIN)/python benchmarks/serving/kernel_memory.py

bench-gpu: $(VENV)/.installed
	$(BIN)/python benchmarks/serving/elastic_vit.py --model vit_base_patch16_224 --batches 1 8 32 64
	$(BIN)/python benchmarks/serving/elastic_vit.py --model vit_large_patch16_224 --batches 1 8 32

# Too long for `make test`; whoever changes what they look at commits their report (CONTRIBUTING.md).
soak: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/serving/serving_soak.py
	FEDSTILL_RAY=1 $(BIN)/python -m pytest tests/e2e/test_serve_ray.py
	$(BIN)/python benchmarks/serving/replica_kill.py
	$(BIN)/python benchmarks/fleet/month.py --agents 6 --events 40 --minutes 8

fuzz: $(VENV)/.installed-dev
	FEDSTILL_FUZZ_FACTOR=20 $(BIN)/python -m pytest --timeout 0 tests/contract/test_fuzz_records.py tests/contract/test_fuzz_inference.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz_files.py --files 20000 --markdown docs/results/fuzz.md

# Generated code is committed, so that nobody needs the compiler to run fedstill.
protos: $(VENV)/.installed-dev
	$(BIN)/python -m grpc_tools.protoc -Ifedstill/protos=protos \
		--python_out=importroot --pyi_out=importroot --grpc_python_out=importroot \
		fedstill/protos/edge_inference.proto fedstill/protos/open_inference.proto fedstill/protos/serving.proto

clean:
	rm -rf .venv .venv-clients build site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# The stamps make a second `make demo` start at once; a changed pin or dependency installs again.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP_INSTALL) --editable '.[full]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP_INSTALL) --editable '.[bench]'
	touch $@ $(VENV)/.installed

$(FEDSTILL_CLIENTS)/.installed: tests/clients.txt
	$(PYTHON) -m venv $(FEDSTILL_CLIENTS)
	$(FEDSTILL_CLIENTS)/bin/python -m pip install --requirement tests/clients.txt
	cd $(FEDSTILL_CLIENTS) && if bin/perf_analyzer --help 2>&1 | grep -q libb64; then \
		apt-get --quiet --quiet download libb64-0d && dpkg --extract libb64-0d_*.deb . || \
		echo 'perf_analyzer needs libb64.so.0d, which Debian calls libb64-0d; its tests are skipped'; fi
	touch $@

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)
