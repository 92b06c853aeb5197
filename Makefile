# One word each. demo, test, bench, lint, format and build set up what they need (tools/bootstrap.py).
# Arguments for the command: make test ARGS="-k residual". Another interpreter: make PYTHON=python3.12 demo.
PYTHON ?= $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV)/bin/python,python3)
ARGS ?=

.PHONY: help demo test bench lint format build cuda sanitize clean

help:
	@echo "make demo      both halves on real input, with a report in demo-report/"
	@echo "make test      all tests"
	@echo "make bench     pytest-benchmark over the shapes of real networks"
	@echo "make lint      ruff, mypy, cython-lint, clang-format"
	@echo "make format    rewrite the sources in the project's format"
	@echo "make sanitize  the C++ tests under the address, undefined and thread sanitizers"
	@echo "make build     compile in place"
	@echo "make cuda      compile in place with the CUDA files (no kernel yet), also where torch or the machine has no CUDA"
	@echo "make clean     remove what was built (.venv stays)"

demo test bench lint format build:
	@$(PYTHON) tools/bootstrap.py $@ $(ARGS)

cuda:
	@SENET_FAST_CUDA=1 $(PYTHON) tools/bootstrap.py build

# The sanitized tests are plain programs: no Python, no torch.
SANITIZED := build/sanitize
SANITIZE_FLAGS := -std=c++20 -O1 -g -Icsrc -pthread -fno-omit-frame-pointer -fno-sanitize-recover=all \
	-ffp-contract=off -fno-math-errno -fno-trapping-math -Wno-psabi
HEADERS := $(wildcard csrc/se/*.h csrc/se/cpu/*.h csrc/se/cpu/*.inl csrc/ids/*.h csrc/ids/*.inl)
memory := address,undefined
thread := thread

sanitize: $(foreach kind,memory thread,$(SANITIZED)/kernels_test.$(kind) $(SANITIZED)/snowflake_test.$(kind))
	@set -e; for program in $^; do echo "+ $$program"; ./$$program; done

$(SANITIZED)/kernels_test.%: tests/csrc/kernels_test.cpp $(wildcard csrc/se/cpu/*.cpp) $(HEADERS)
	@mkdir -p $(@D)
	$(CXX) $(SANITIZE_FLAGS) -fsanitize=$($*) $(filter %.cpp,$^) -o $@

$(SANITIZED)/snowflake_test.%: tests/csrc/snowflake_test.cpp $(HEADERS)
	@mkdir -p $(@D)
	$(CXX) $(SANITIZE_FLAGS) -fsanitize=$($*) $(filter %.cpp,$^) -o $@

clean:
	rm -rf build demo-report senet_fast/ids/_snowflake.cpp .mypy_cache .ruff_cache .hypothesis .benchmarks
	find senet_fast tests benchmarks tools -name __pycache__ -prune -exec rm -rf {} +
	find senet_fast -name '*.so' -delete
