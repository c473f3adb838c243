# make demo    fresh machine -> a table of results   (DATA=<folder that holds HOSS/>: on real chips)
# make test    fresh machine -> the whole test suite
# make soak    kills and mutated files by the thousand, hours   (KILLS=200 MUTANTS=10000 SEED=0)
# make bench   the benchmark tables, benchmarks/results-<date>.md among them
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test soak bench lint setup clean

setup: $(VENV)/.complete

$(VENV)/.complete: requirements.txt requirements-search.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check --quiet --requirement requirements.txt --requirement requirements-search.txt
	touch $@

demo: setup
	$(RUN) -m tools.demo $(if $(DATA),--data "$(DATA)")

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile

soak: setup
	OMP_NUM_THREADS=1 $(RUN) -m tests.soak --kills $(or $(KILLS),200) --mutants $(or $(MUTANTS),10000) --seed $(or $(SEED),0)

bench: setup
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.cpu

clean:
	rm -rf $(VENV) logs .pytest_cache .ruff_cache .hypothesis
