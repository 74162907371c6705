# Every target sets up what it needs. PYTHON=python3 uses an existing environment instead of .venv.
SHELL := /bin/bash
VENV := .venv
BASE_PYTHON ?= python3
ifdef PYTHON
READY := build
else
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
endif

CLANG_FORMAT = $(PYTHON) -c 'import sys, clang_format; sys.exit(clang_format.clang_format())'
CPP = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test suite bench emulate sanitize cuda-on-cpu lint format cuda-check gpu-check build clean

$(VENV)/.ready: setup.py pyproject.toml CMakeLists.txt requirements.txt $(shell find csrc -type f 2>/dev/null)
	test -x $(VENV)/bin/python || $(BASE_PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

build: $(if $(filter $(VENV)/bin/python,$(PYTHON)),$(VENV)/.ready)
	$(PYTHON) setup.py --quiet build_ext --inplace

demo: $(READY)
	PYTHONPATH=. $(PYTHON) examples/demo.py
	PYTHONPATH=. $(PYTHON) examples/stream.py

# Beside the suite, on another core: the CUDA kernels as C++, and those for AVX-512 where the CPU lacks it or its BF16.
EMULATED = $(shell grep -qs avx2 /proc/cpuinfo && ! grep -qs avx512_bf16 /proc/cpuinfo && echo emulate)
test: $(READY)
	$(MAKE) --jobs=2 --output-sync=target suite $(EMULATED:%=beside-%) beside-cuda-on-cpu PYTHON=$(PYTHON)

# One thread at low priority: on cores that two programs share, threads wait for threads that do not run.
beside-%: $(READY)
	OMP_NUM_THREADS=1 nice -n 19 $(MAKE) $* PYTHON=$(PYTHON)

# The + shows its progress, which --output-sync would hold back until the end.
suite: $(READY)
	+$(PYTHON) -m pytest tests

# Measures everything (BENCH=--full: more of it), keeps the run, and writes the tables of the README from it.
bench: $(READY)
	$(PYTHON) -m pytest benchmarks --save $(BENCH)
	$(PYTHON) benchmarks/readme.py

# The kernel tests of the AVX-512 paths, run by AVX2: TESTS=tests/kernels/test_rope.py for one family.
emulate: $(READY)
	VIDEOAR_TEST_LIBRARY=emulated $(PYTHON) setup.py --quiet build_ext --inplace
	VIDEOAR_LIBRARY=$$(ls -d $(CURDIR)/build/cmake-*/test_libraries/libvideoar_emulated.so) \
	  $(PYTHON) -m pytest $(or $(TESTS),tests/kernels) -k avx512

# The kernel tests on a build with AddressSanitizer and UBSan, every instruction set in it.
sanitize: $(READY)
	$(PYTHON) tests/sanitize.py $(TESTS)

# The kernel tests on the CUDA kernels, compiled for the CPU: TESTS=tests/kernels/test_rope.py for one family.
cuda-on-cpu: $(READY)
	$(PYTHON) tests/cuda_on_cpu.py $(TESTS)

lint: $(READY)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(CLANG_FORMAT) --dry-run --Werror $(CPP)

format: $(READY)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	$(CLANG_FORMAT) -i $(CPP)

cuda-check: $(READY)
	$(PYTHON) csrc/cuda/check.py

# Everything that needs a GPU, with the Python that is there: OUT=folder STAGES="build tests" LIMIT=540.
gpu-check:
	$(if $(filter $(VENV)/bin/python,$(PYTHON)),python3,$(PYTHON)) tests/gpu_check.py \
	  --out "$(or $(OUT),build/gpu-check)" --limit $(or $(LIMIT),540) $(STAGES)

clean:
	rm -rf build *.egg-info videoar_kernels/*.so $(VENV)
