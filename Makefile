# Every target sets up by itself: .venv is made and filled from requirements.lock, and again only when the lock changes.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test lab lint clean

demo: .venv/.installed
	$(BIN)/wxlab demo

lab: .venv/.installed
	$(BIN)/wxlab lab

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tools/nbclean.py --check notebooks/*.ipynb

# one thread for each of the two test processes: small arrays are slower on more
test: export OMP_NUM_THREADS = 1
test: lint
	$(BIN)/python -m pytest tests -n 2 --dist loadfile -q
	$(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=300 notebooks -n 2 --dist loadfile -q

.venv/.installed: requirements.lock
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'wxlab needs Python 3.11 or newer, this is ' + sys.version.split()[0] + '; run make PYTHON=python3.11')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf .venv
