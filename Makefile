.DEFAULT_GOAL := help
.PHONY: help install test slow gpu lint format types check docs bench clean

help:  ## Show what can be made
	@grep -hE '^[a-z_-]+:.*?## ' $(MAKEFILE_LIST) | awk 'BEGIN {FS = ":.*?## "} {printf "  %-10s %s\n", $$1, $$2}'

install:  ## Install with everything needed to develop
	pip install -e '.[dev]'

test:  ## Fast tests
	python -m pytest

slow:  ## Slow tests: launches, whole runs
	python -m pytest -m "slow and not gpu"

gpu:  ## Tests that need a CUDA device
	python -m pytest -m gpu

lint:  ## Lint and check formatting
	ruff check .
	ruff format --check .

format:  ## Format and sort imports
	ruff check --fix .
	ruff format .

types:  ## Check types
	mypy

check: lint types test  ## What a change must pass

docs:  ## Build the site in site/ (pip install -e '.[docs]')
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

bench:  ## Benchmarks of the main job (each prints ratios of its own run)
	python benchmarks/head_cost.py
	python benchmarks/training_loop.py
	python benchmarks/default_run.py

clean:  ## Remove build products and caches
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache
