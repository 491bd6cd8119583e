# Everything a newcomer or a contributor runs; `make` alone lists it.
#
# All targets work in the virtual environment .venv, which is made if it is missing, with the
# versions of constraints.txt. Another interpreter: make PYTHON=python3.12; another place for the
# environment: make VENV=/tmp/venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# Worker processes of the tests, and what pytest is told besides.
JOBS ?= 2
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install dev quickstart test test-slow test-browser test-all lint format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

install: $(VENV)/.installed ## The library in a virtual environment
dev: $(VENV)/.installed-dev ## The same with what tests and checks need

# Stamps: installed again only when the requirements change.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[dev,es,text,lora]"
	@touch $@ $(VENV)/.installed

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

quickstart: $(VENV)/.installed ## First results without any download: two pictures and a table in quickstart/
	rm -rf quickstart
	$(BIN)/icl-bench sample Digits-Proj8-v0 --out quickstart/episode.png
	$(BIN)/icl-bench evaluate chance --suite digits-v0 --runs quickstart/runs
	$(BIN)/icl-bench evaluate 1-nn --suite digits-v0 --runs quickstart/runs
	$(BIN)/icl-bench evaluate logistic-regression --suite digits-v0 --runs quickstart/runs
	$(BIN)/python -m baselines.sgd --preset cpu --suite digits-v0 --runs quickstart/runs
	$(BIN)/python -m baselines.replay leaderboards/digits-v0/gpicl --runs quickstart/runs
	$(BIN)/icl-bench score quickstart/runs/*
	$(BIN)/icl-bench plot quickstart/runs/* --out quickstart/learning_curves.png
	@echo
	@echo "An episode:       quickstart/episode.png"
	@echo "Learning curves:  quickstart/learning_curves.png"

test: $(VENV)/.installed-dev ## The fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) -m "not slow and not browser" $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-dev ## The slow tests alone
	$(BIN)/python -m pytest -q -m "slow and not browser" $(PYTEST_ARGS)

test-browser: $(VENV)/.installed-dev ## The page of the leaderboards in a Chromium; skips where there is none
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m browser $(PYTEST_ARGS)

test-all: test test-slow test-browser ## Fast, slow and browser tests

lint: $(VENV)/.installed-dev ## ruff and mypy, which change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## Format the code and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove what these targets made, but for the environment and runs/
	rm -rf quickstart build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find icl_bench baselines tests benchmarks tools -name __pycache__ -prune -exec rm -rf {} +
