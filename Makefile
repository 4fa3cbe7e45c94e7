# Every target sets up what it needs by itself; a second call installs nothing.
#
#   make demo        the whole story on this machine, then a report        (under 6 minutes, installing included)
#   make test        the tests, few kills and few flips                    (about 20 minutes on 2 cores)
#   make test-full   everything, counts at full size                       (under 40 minutes on 2 cores)
#   make test-aot    the tests that compile TPU programs, with no TPU      (installs libtpu, 137 MB)
#   make check       format, lint, types, import order, doctests
#   make bench       the benchmarks beside their peers (a second virtual environment)
#   make bench-plans plans beside specs by hand, predictions beside compiled TPU programs (installs libtpu)
#   make lock        new locks from pyproject.toml

PYTHON ?= python3
PYTAG  := $(shell $(PYTHON) -c 'import sys; print(f"py{sys.version_info[0]}{sys.version_info[1]}")')
VENV   ?= .venv
BIN    := $(VENV)/bin
LIBTPU := .libtpu-$(PYTAG)
# libtpu stays out of the environment: jax would look for a TPU at every start.
AOT    := PYTHONPATH=$(LIBTPU) JAX_PLATFORMS=cpu $(BIN)/python

.PHONY: demo test test-full test-aot check bench bench-plans lock clean

demo: $(VENV)/.base-$(PYTAG)
	rm -rf demo-out
	$(BIN)/jaxscale demo --out demo-out

test: $(VENV)/.dev-$(PYTAG)
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-full: $(VENV)/.dev-$(PYTAG)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-aot: $(VENV)/.dev-$(PYTAG) $(LIBTPU)/.done
	$(AOT) -m pytest -m aot $(PYTEST_ARGS)

check: $(VENV)/.dev-$(PYTAG)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --doctest-modules jaxscale retrieval configs launch

bench: $(VENV)/.dev-$(PYTAG) .venv-peers/.done
	$(BIN)/python benchmarks/store.py --out benchmarks/results/store.jsonl
	$(BIN)/python benchmarks/encode.py --peers .venv-peers/bin/python --out benchmarks/results/encode.jsonl
	$(BIN)/python benchmarks/data_pipeline.py --out benchmarks/results/data_pipeline.jsonl
	$(BIN)/python benchmarks/train_step.py --peers .venv-peers/bin/python --out benchmarks/results/train_step.jsonl
	$(BIN)/python benchmarks/train_tower.py --peers .venv-peers/bin/python --out benchmarks/results/train_tower.jsonl
	$(BIN)/python -m benchmarks.parity --peers .venv-peers/bin/python --out benchmarks/results/parity.jsonl
	$(BIN)/python -m benchmarks.sentence_parity --peers .venv-peers/bin/python \
		--out benchmarks/results/sentence_parity.jsonl

bench-plans: $(VENV)/.dev-$(PYTAG) $(LIBTPU)/.done
	$(AOT) -m benchmarks.collectives --out benchmarks/results/collectives.jsonl --markdown docs/benchmarks/collectives.md
	$(AOT) -m benchmarks.plan_accuracy
	$(AOT) -m benchmarks.plan_accuracy --page docs/benchmarks/plan-accuracy.md
	$(AOT) -m benchmarks.tune_rank

# A stamp carries the Python version, so that another interpreter makes the environment anew.
$(VENV)/.made-$(PYTAG):
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

$(VENV)/.base-$(PYTAG): locks/base-$(PYTAG).txt pyproject.toml $(VENV)/.made-$(PYTAG)
	$(PIP) --require-hashes -r locks/base-$(PYTAG).txt
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.dev-$(PYTAG): locks/dev-$(PYTAG).txt $(VENV)/.base-$(PYTAG)
	$(PIP) --require-hashes -r locks/dev-$(PYTAG).txt
	touch $@

$(LIBTPU)/.done: locks/tpu.txt $(VENV)/.made-$(PYTAG)
	$(PIP) --require-hashes --no-deps --target $(LIBTPU) --upgrade -r locks/tpu.txt
	touch $@

.venv-peers/.done: locks/peers.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r locks/peers.txt
	touch $@

lock:
	$(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv
	for v in 3.11 3.12; do \
	  tag=py$$(echo $$v | tr -d .); \
	  common="--quiet --generate-hashes --no-annotate --no-header --python-version $$v --python-platform x86_64-manylinux_2_28"; \
	  .venv-lock/bin/uv pip compile $$common pyproject.toml locks/build.in -o locks/base-$$tag.txt && \
	  .venv-lock/bin/uv pip compile $$common --extra dev -c locks/base-$$tag.txt pyproject.toml locks/build.in -o locks/dev-$$tag.txt || exit 1; \
	done

clean:
	rm -rf .venv .venv-* .libtpu-* build dist *.egg-info demo-out
