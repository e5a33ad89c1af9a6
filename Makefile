# Everything a newcomer needs: `make study` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
# Your own pip options, for example a CPU build of torch:
#   make study PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_OPTIONS ?=
PRESET ?= small
RAW ?=
# $DSNB_DATA where it is set; else data/ for the small phantom study, and a folder of its own for any other.
COHORT := $(if $(RAW),-$(notdir $(patsubst %/,%,$(RAW))))
DATA ?= $(or $(DSNB_DATA),data$(if $(filter-out small,$(PRESET))$(RAW),-$(PRESET)$(COHORT)))
PHANTOM ?= data$(if $(filter-out small,$(PRESET)),-$(PRESET))
VERIFY ?= data-verify
RUN := $(VENV)/bin/python -m
# Seconds are CPU time on one thread. The phantom's data root first, then the real cohort's.
LEDGER := OMP_NUM_THREADS=1 $(RUN) dsnb
WHERE := --preset "$(PRESET)" --data-root "$(if $(RAW),$(PHANTOM),$(DATA))"
WHERE_REAL := --preset "$(PRESET)" --raw "$(RAW)" --data-root "$(DATA)"
# Two at a time, one thread each: threads of several processes on two cores spin against each other.
TEST := OMP_NUM_THREADS=1 $(RUN) pytest -q -n 2 --dist loadscope

# What another build of torch brings, from another origin: no hash of ours would fit.
UNHASHED := torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti \
	nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand \
	nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink \
	nvidia-nvshmem-cu13 nvidia-nvtx

.PHONY: help study ablations test test-all book verify lint lock clean

help:  ## list the targets
	@echo "make TARGET [NAME=VALUE ...]; a newcomer needs 'make study' and 'make test'"
	@echo
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/;s/^/  /' | expand -t 14
	@echo
	@echo "  PRESET=small       smoke (minutes), small (an hour on 2 cores), medium or full (GPUs)"
	@echo "  RAW=FOLDER         your BIDS folder of T1w scans; without it the digital phantom"
	@echo "  DATA=FOLDER        all products; else \$$DSNB_DATA, data, or data-PRESET-NAME"
	@echo "  PYTHON=python3.11  which Python makes $(VENV);  PIP_OPTIONS=\"...\"  your own pip options"
	@echo
	@echo "One stage or model alone: $(RUN) dsnb --help"

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dsnb needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a minute or two)"
	@$(RUN) pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt -e '.[dev]'
	@touch $@

study: $(VENV)/.installed  ## run the ten stages that changed, then build the book
	@$(RUN) dsnb study --preset "$(PRESET)" --raw "$(RAW)" --data-root "$(DATA)"

ablations: $(VENV)/.installed  ## fill the ledger of speed, cost and ablations (hours; resumable)
	@$(LEDGER) bench speed $(WHERE)
	@$(LEDGER) bench cost $(WHERE)
	@$(LEDGER) bench batch $(WHERE)
	@$(LEDGER) bench steps $(WHERE)
	@$(LEDGER) bench loader $(WHERE)
	@$(LEDGER) search ablations $(WHERE)
	@$(LEDGER) search trials $(WHERE)
	@$(LEDGER) search grids $(WHERE)
	@$(LEDGER) search norms $(WHERE)
	@$(LEDGER) search severity $(WHERE)
	@$(LEDGER) search shift $(WHERE)
	@$(LEDGER) search hard $(WHERE)
	@$(LEDGER) search latents $(WHERE)
	@$(LEDGER) search subtypes $(WHERE)
	@$(LEDGER) search stages $(WHERE)
	@$(LEDGER) search synthesis $(WHERE)
	@$(LEDGER) search sharpness $(WHERE)
	@$(LEDGER) search coverage $(WHERE)
	$(if $(RAW),@$(LEDGER) bench speed $(WHERE_REAL))
	$(if $(RAW),@$(LEDGER) search ablations $(WHERE_REAL))
	$(if $(RAW),@$(RUN) dsnb map $(WHERE_REAL))
	$(if $(RAW),@$(LEDGER) search power $(WHERE_REAL))
	$(if $(RAW),@$(RUN) dsnb search planted $(WHERE_REAL) --phantom "$(PHANTOM)")

test: $(VENV)/.installed  ## the quick tests
	@$(TEST) -m "not fault and not cluster and not browser"

test-all: $(VENV)/.installed  ## every test
	@$(TEST)

book: $(VENV)/.installed  ## build the book from the committed pages, without training
	@rm -rf book/_build
	@$(RUN) dsnb verify
	@$(VENV)/bin/jupyter-book build -W -n --keep-going book
	@$(RUN) dsnb verify

verify: $(VENV)/.installed  ## run the small study again in data-verify; say which number of the book moved
	@$(RUN) dsnb study --no-publish --preset small --data-root "$(VERIFY)"
	@$(RUN) dsnb verify "$(VERIFY)"

lint: $(VENV)/.installed  ## style
	@$(RUN) ruff check . && $(RUN) ruff format --check .

lock:  ## write lock.txt: hashes of the tested set, but for torch (needs uv and the internet)
	@(echo "# Hashes of constraints.txt but for torch, whose origin differs. \`make lock\` writes it; use:"; \
	  echo "#   pip install -c constraints.txt torch && pip install --no-deps --require-hashes -r lock.txt"; \
	  uv pip compile pyproject.toml --extra dev --extra strip -c constraints.txt --generate-hashes -q \
	    --python-version 3.11.7 --python-platform x86_64-manylinux_2_28 --no-header --no-annotate \
	    $(addprefix --no-emit-package ,$(UNHASHED))) > lock.txt

clean:  ## remove what can be made again, data excepted
	rm -rf book/_build .pytest_cache .ruff_cache *.egg-info
