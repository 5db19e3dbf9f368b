# Every target does its own set-up on a fresh machine and is instant when nothing changed.
PYTHON ?= python3
BIN    := .venv/bin
SOURCE := $(shell find src -type f -not -name '*.pyc' 2>/dev/null)
TESTS  := $(shell find tests bench -type f -not -name '*.pyc' 2>/dev/null)
PAGES  := README.md CONTRIBUTING.md CHANGELOG.md $(wildcard docs/*.md)
TOOLS  := $(wildcard tools/*)
BENCH  ?= quick

.PHONY: help setup demo test check bench soak speedrun trials transfer-study formula-study unlabelled-study truth-study clean
help:
	@echo "make demo    train a small hybrid on 500 pictures, from nothing and from shipped weights, then at a higher resolution"
	@echo "make test    run the tests"
	@echo "make check   style, types, spelling and the order of the rooms"
	@echo "make bench   speed against timm, transformers, torchvision and ONNX Runtime (BENCH=quick or full)"
	@echo "make soak    kill, starve and signal training hundreds of times; the table goes to docs/reliability.md"
	@echo "make speedrun  accuracy on CIFAR-10 for a budget of FLOPs, ours and public recipes (BUDGET=0.02 ONLY=hybrid|plain|peers SEEDS=1)"
	@echo "make trials  one thing changed at a time in that recipe; the table goes to docs/pretraining.md (BUDGET=0.02 or 0.1)"
	@echo "make transfer-study  what pre-training is worth: from nothing, formulas, CIFAR-10 (MODEL=hybrid|plain SEEDS=3); the table goes to docs/pretraining.md"
	@echo "make formula-study  which pictures of formulas are worth the most before 1,000 real ones; the table goes to docs/pretraining.md"
	@echo "make unlabelled-study  what pictures without labels are worth: masked patches, Noisy Student (SEEDS=3); to docs/pretraining.md"
	@echo "make truth-study  whether maps of where models look are true, beside maps that know nothing; to docs/explain.md"
	@echo "make setup   a .venv with everything the others need"

setup: .venv/ready
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: .venv/demo
.venv/demo: .venv/ready $(SOURCE) tools/demo
	tools/demo
	@touch $@

test: .venv/tested
.venv/tested: .venv/ready $(SOURCE) $(TESTS) $(PAGES) $(TOOLS)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile
	@touch $@

check: .venv/checked
.venv/checked: .venv/ready $(SOURCE) $(TESTS) $(PAGES) $(TOOLS)
	$(BIN)/ruff format --check src tests bench tools/recipe_fields tools/parity tools/ship tools/contact_sheet
	$(BIN)/ruff check src tests bench tools/recipe_fields tools/parity tools/ship tools/contact_sheet
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell src tests bench docs README.md CONTRIBUTING.md CHANGELOG.md
	@touch $@

bench: .venv/ready
	$(BIN)/python -m bench $(BENCH)

soak: .venv/ready
	$(BIN)/python tools/soak

speedrun: .venv/ready
	$(BIN)/python -m bench.speedrun

trials: .venv/ready
	$(BIN)/python -m bench.trials

transfer-study: .venv/ready
	$(BIN)/python -m bench.transfer

formula-study: .venv/ready
	$(BIN)/python -m bench.formulas

unlabelled-study: .venv/ready
	$(BIN)/python -m bench.unlabelled

truth-study: .venv/ready
	$(BIN)/python -m bench.truth

clean:
	rm -rf .venv runs
