# Everything a reader or a contributor runs. `make` alone lists the targets.
#
# The environment goes to .venv and is made again, in place, when pyproject.toml or constraints.txt
# changes. Nothing of the shell's own Python set-up is used. These settings may be given on the
# command line:
#   PYTHON=python3.12                      the interpreter to make .venv from (3.11 to 3.13)
#   EDITION=instructor                     what `make pdf` prints: reader, student or instructor
#   DATA=folder MINUTES=10 PROCESSES=12    for `make pacs`: where PACS is, how long, side by side
#   PIP_ARGS="--extra-index-url URL"       more arguments for pip, for example PyTorch's CPU-only index

PYTHON   ?= python3
PIP_ARGS ?=
EDITION  ?= student
VENV     := .venv
OLDEST   := .venv-oldest
RUN      := $(VENV)/bin/python
JUPYTER_BOOK = $(RUN) -c "from jupyter_book.cli.main import main; main()"
VERSION_OK := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
JOBS     ?= 2
MINUTES  ?= 10
PROCESSES ?= 12

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help book student instructor pdf test quick fresh test-oldest test-gpu bench study pacs clean env-book env-pdf env-test

# One computing thread a process: two processes on two cores beat one process with two threads by
# far, and the numbers do not depend on how many cores a machine has.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export PYTHONUTF8 := 1
export PYTHONNOUSERSITE := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONWARNINGS PYTHONOPTIMIZE PYTHONDONTWRITEBYTECODE
unexport MPLBACKEND
unexport JUPYTER_PATH JUPYTER_CONFIG_PATH JUPYTER_CONFIG_DIR JUPYTER_DATA_DIR SPHINXOPTS PYTEST_ADDOPTS

help: ## list the targets
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*## /  \1 | /p' $(firstword $(MAKEFILE_LIST)) | awk -F' \\| ' '{printf "%-13s %s\n", $$1, $$2}'

# The next build, of whatever edition, runs the chapters whose code has changed, and all when
# anything else has that they use. What a failed or interrupted build left is not built upon.
USED := dgprune_lite book/dgprune_book book/_ext book/_static book/results _config.yml _toc.yml constraints.txt Makefile
CHANGED = find $(USED) -type f ! -name "*.pyc" -newer _build/.complete

START = { [ -f _build/.complete ] && [ -z "$$($(CHANGED))" ] || rm -rf _build; } && \
  mkdir -p _build && rm -f _build/.complete && touch _build/.started
DONE = mv _build/.started _build/.complete && echo

book: env-book ## build the book into _build/html, running its chapters
	@$(START)
	DGPRUNE_EDITION=reader $(JUPYTER_BOOK) build . -W --keep-going -n
	@$(RUN) tools/versions.py "Built with"
	@$(DONE) "Open _build/html/index.html in a browser."

student: env-book ## build the edition without solutions into _build/student/html
	@$(START)
	$(RUN) tools/build_edition.py student
	@$(RUN) tools/versions.py "Built with"
	@$(DONE) "Open _build/student/html/index.html in a browser."

instructor: env-book ## build the edition with notes for the teacher into _build/instructor/html
	@$(START)
	$(RUN) tools/build_edition.py instructor
	@$(RUN) tools/versions.py "Built with"
	@$(DONE) "Open _build/instructor/html/index.html in a browser."

pdf: env-pdf ## print the book into _build/dgprune_lite.pdf, without solutions
	@$(RUN) tools/chromium.py "make pdf"
	@$(START)
	$(RUN) tools/build_edition.py $(EDITION)
	@$(DONE) "Printing the pages"
	$(RUN) tools/make_pdf.py $(EDITION)

test: env-test lint ## check style and types, run all tests, doctests and the book (minutes)
	@$(RUN) tools/chromium.py "make test"
	$(RUN) -m pytest -q -n $(JOBS) --dist loadgroup --no-loadscope-reorder --durations 10

quick: env-test lint ## check style and types, run the fast tests (under 2 minutes)
	$(RUN) -m pytest -q -n $(JOBS) --dist loadgroup --no-loadscope-reorder -m "not slow and not book"

fresh: ## run the tests as on a newcomer's machine: a clone, an environment from nothing, an empty HOME
	$(PYTHON) tools/fresh_machine.py test PYTHON="$(PYTHON)" PIP_ARGS="$(PIP_ARGS)" JOBS="$(JOBS)"

test-oldest: env-test ## run the package's tests with the oldest versions that pyproject.toml promises
	rm -rf $(OLDEST) && $(RUN) -m venv $(OLDEST)
	$(RUN) tools/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint $(OLDEST)/constraints.txt $(PIP_ARGS) --editable ".[book,test,pdf,study,hub,interop,data]"
	$(OLDEST)/bin/python -m pytest -q -n $(JOBS) --dist loadgroup --no-loadscope-reorder -m "not book"

test-gpu: env-test ## run the tests that need a CUDA device, and fail where there is none
	@$(RUN) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "PyTorch finds no CUDA device")'
	$(RUN) -m pytest -q -m gpu tests

.PHONY: lint
lint: env-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: env-test ## print the speed tables
	@for name in pruner scoring speedup training; do echo "== $$name"; $(RUN) benchmarks/$$name.py || exit 1; done

study: env-test ## run the full grid of experiments behind the book's figures (hours; resumable)
	$(RUN) -m dgprune_book.study

pacs: env-test ## go on with PACS at 128 pixels on a GPU for some minutes: make pacs DATA=folder MINUTES=10
	@test -n "$(DATA)" || { echo "make pacs DATA=folder: which folder holds PACS?"; exit 2; }
	-timeout --signal=INT --kill-after=30s $(MINUTES)m $(RUN) -m dgprune_book.study pacs --data "$(DATA)" --device cuda --jobs $(PROCESSES)
	$(RUN) -m dgprune_book.study pacs --collect

.PHONY: slides
slides: env-pdf ## make the lecture's slides: _build/slides/ and, with Chromium, _build/slides.pdf
	$(RUN) tools/make_slides.py

clean: ## remove the environment, the built book and every cache
	rm -rf $(VENV) $(OLDEST) _build .pytest_cache .mypy_cache .ruff_cache .hypothesis book/.jupyter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. A stamp is written only after pip has finished, so an interrupted installation is
# taken up again. An environment whose Python is gone, or that was moved here, is filled anew.
env-book: $(VENV)/.installed-book
env-pdf: $(VENV)/.installed-pdf
env-test: $(VENV)/.installed-test

$(VENV)/.installed-book: EXTRAS := book
$(VENV)/.installed-pdf: EXTRAS := book,pdf
$(VENV)/.installed-test: EXTRAS := book,pdf,test,bench,data

IS_OURS := import importlib.util as u, os; s = u.find_spec("dgprune_lite"); \
  raise SystemExit(not s or os.path.realpath(s.origin + "/../..") != os.path.realpath("."))
$(shell $(RUN) -I -c '$(IS_OURS)' 2>/dev/null || rm -f $(VENV)/.installed-*)

$(VENV)/.installed-%: pyproject.toml constraints.txt
	@$(RUN) -c '$(VERSION_OK)' 2>/dev/null || { \
	  for python in $(PYTHON) python3 python3.13 python3.12 python3.11 none; do \
	    "$$python" -c '$(VERSION_OK)' 2>/dev/null && break; done; \
	  if [ $$python = none ]; then \
	    echo "dgprune_lite needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	    echo "Install one, or say where it is: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; fi; \
	  rm -rf $(VENV); "$$python" -m venv $(VENV); }
	@echo "Installing dgprune_lite[$(EXTRAS)] into $(VENV) (the first time takes some minutes)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS) \
	  --editable ".[$(EXTRAS)]"
	@touch $@ $(if $(findstring book,$@),,$(VENV)/.installed-book) \
	  $(if $(findstring test,$@),$(VENV)/.installed-pdf)
