# Every target sets up by itself: .venv is made and filled from the lock files, and again only when they change.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test lab lint nowcast clean

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

.venv/.installed: requirements.lock requirements-nowcast.lock
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'wxlab needs Python 3.11 or newer, this is ' + sys.version.split()[0] + '; run make PYTHON=python3.11')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@$(MAKE) --no-print-directory nowcast 2> /dev/null || true
	touch $@

# pysteps is compiled here, against the packages of the lock, which it must not change; everything else works without it
PIP_BUILD := $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation
nowcast:
	@{ $(PIP_BUILD) $$(grep -v ^pysteps requirements-nowcast.lock) && $(PIP_BUILD) $$(grep ^pysteps requirements-nowcast.lock); } \
	  > .venv/nowcast.log 2>&1 || { echo "pysteps could not be built (see .venv/nowcast.log; it needs a C compiler), so radar extrapolation" \
	  "is left out; run make nowcast to try again"; exit 1; }

clean:
	rm -rf .venv
