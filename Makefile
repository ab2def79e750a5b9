# Every target sets itself up from nothing: a virtual environment with the locked dependencies, by uv where it is present
# and by pip elsewhere.

.DEFAULT_GOAL := help
PYTHON ?= python3
SEED ?= 1
MINUTES ?= 10
VENV := .venv
READY := $(VENV)/ready
RUN := $(VENV)/bin/
COMPILE := uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header -p 3.11
NEW_ENOUGH = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Temper needs Python 3.11 or later: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
PART := --constraints requirements.lock --no-annotate

.PHONY: help demo test chaos serve docs client backup restore upgrade check format lock bill clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## start the service, harden a small model, print the before/after table, stop
	$(RUN)python -m examples.demo

test: check ## lint, types, imports, then the quick tests
	OMP_NUM_THREADS=1 $(RUN)python -m pytest --numprocesses 2 --dist worksteal

chaos: $(READY) ## ten minutes of a server whose parts break at random: make chaos SEED=2 MINUTES=1
	$(RUN)python -m tests.chaos --seed $(SEED) --minutes $(MINUTES)

serve: $(READY) ## start the service on this machine and leave it running
	$(RUN)temper serve

docs: $(READY) ## write the generated pages of docs/reference, and build the documentation into site/
	$(RUN)python -m docs.generate
	$(RUN)zensical build --clean --strict

check: $(READY) ## lint, types and import rules
	$(RUN)ruff format --check .
	$(RUN)ruff check .
	$(RUN)mypy
	$(RUN)lint-imports

format: $(READY) ## lay the code out and mend what ruff can mend
	$(RUN)ruff format .
	$(RUN)ruff check --fix .

client: $(VENV)/client ## install the temper command alone, without torch

backup: ## save the server of docker-compose.yml to a new folder in backups/
	@deploy/backup $(TO)

restore: ## fill an empty server from a backup: make restore FROM=backups/...
	@deploy/restore $(FROM)

upgrade: ## bring the server to this checkout's version, with a backup first
	@deploy/upgrade

lock: ## write requirements.lock from pyproject.toml, and the images' parts of it (needs uv)
	$(COMPILE) --all-extras pyproject.toml -o requirements.lock
	echo "setuptools>=82" | $(COMPILE) $(PART) --extra api --extra client pyproject.toml - -o deploy/api.lock
	echo "setuptools>=82" | $(COMPILE) $(PART) --extra worker --extra client pyproject.toml - -o deploy/worker.lock

bill: $(READY) ## write a bill of materials of each image's packages (CycloneDX, from the lock files) into dist/
	@mkdir -p dist
	$(RUN)cyclonedx-py requirements --output-reproducible --output-file dist/api.cdx.json deploy/api.lock
	$(RUN)cyclonedx-py requirements --output-reproducible --output-file dist/worker.cdx.json deploy/worker.lock

clean: ## remove the virtual environment and all caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .cache site *.egg-info

$(READY): requirements.lock pyproject.toml
	@$(NEW_ENOUGH)
	@if command -v uv >/dev/null; then \
		uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
		uv pip sync --python $(RUN)python requirements.lock && \
		uv pip install --python $(RUN)python --no-deps --no-build-isolation --editable .; \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(RUN)python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock && \
		$(RUN)python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .; \
	fi
	@touch $@

$(VENV)/client: deploy/api.lock pyproject.toml
	@$(NEW_ENOUGH)
	$(PYTHON) -m venv $(VENV)
	$(RUN)python -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/api.lock
	$(RUN)python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
