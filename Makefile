# Two commands for a fresh machine that has only Python (3.11 or later) and make.

PYTHON ?= python3
INSTALL = --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test heavy check docs clean

demo: .venv/demo
	.venv/bin/tenfold demo

test: .venv/dev check
	.venv/bin/python -m pytest -n auto --maxprocesses 4

heavy: .venv/dev
	.venv/bin/python -m pytest -m heavy

check: .venv/dev
	.venv/bin/ruff check src tests benchmarks docs/_site.py
	.venv/bin/ruff format --check src tests benchmarks docs/_site.py
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

.venv/demo: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install $(INSTALL) --editable .[demo]
	touch $@

.venv/dev: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install $(INSTALL) --editable .[dev,bench]
	touch $@

docs: .venv/dev
	.venv/bin/mkdocs build --strict

clean:
	rm -rf .venv site
