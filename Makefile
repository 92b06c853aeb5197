# One word each. All but emulate, mutate, neon and clean set up what they need (tools/bootstrap.py).
# Arguments for the command: make test ARGS="-k residual". Another interpreter: make PYTHON=python3.12 demo.
PYTHON ?= $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV)/bin/python,python3)
ARGS ?=

.PHONY: help macos macos-compiled aarch64 matrix ecosystem networks interop demo check test docs wheels bench lint stubs format build toolkit cuda gates sanitize sanitize-ids emulate stand-in mutate neon clang clang-built clean

help:
	@echo "make demo      both halves on real input, with a report in demo-report/"
	@echo "make check     the fast tests, and a few cases of those that have many: a minute, for each save"
	@echo "make test      all tests"
	@echo "make ecosystem install the libraries that IDs meet (Redis, SQLAlchemy, ...); make test skips them where they are not"
	@echo "make networks  install the libraries whose networks are fused (timm, torchvision, ...); make test skips likewise"
	@echo "make interop   install other tools for models (peft, ONNX Runtime, cmake, ...); make test skips likewise"
	@echo "make bench     pytest-benchmark over the shapes of real networks"
	@echo "make lint      ruff, mypy, cython-lint, clang-format"
	@echo "make stubs     the type stubs against the compiled modules"
	@echo "make format    rewrite the sources in the project's format"
	@echo "make sanitize  the C++ tests under the address, undefined and thread sanitizers, the ID tests under the first two"
	@echo "make emulate   the CUDA kernels on the host, also under the sanitizers; every=10 runs a tenth of the cases"
	@echo "make stand-in  the GPU's binding and its tests on a device that stands in for one, without nvcc"
	@echo "make mutate    plant bugs in the CUDA kernels and show what notices each (20 minutes)"
	@echo "make neon      the C++ test of the kernels on an emulated aarch64"
	@echo "make aarch64   the package built for aarch64, and its tests on an emulated one (6 minutes of a core)"
	@echo "make macos     the parts without torch compiled for arm64 macOS; what stands in there for Linux's calls, tested here"
	@echo "make matrix    the package with each release of Python and torch (ARGS=3.12:2.11 for some): docs/versions.md"
	@echo "make clang     the package compiled by clang beside this build, its C++ test and the op's tests; CLANG=clang++-19"
	@echo "make build     compile in place"
	@echo "make cuda      compile in place with the CUDA kernels, also where torch or the machine has no CUDA"
	@echo "make gates     make cuda, then what its kernels must be: registers, spills, instructions; ARGS=--plant shows bugs noticed"
	@echo "make docs      the documentation site in build/docs; a warning, or a link to a page that is not there, is an error"
	@echo "make wheels    wheels in dist/: with the op for this torch, and the IDs alone; each is tried without a compiler"
	@echo "make clean     remove what was built (.venv stays)"

demo check test docs wheels clang macos matrix aarch64 bench lint stubs format build stand-in ecosystem networks interop toolkit:
	@$(PYTHON) tools/bootstrap.py $@ $(ARGS)

cuda gates:
	@SENET_FAST_CUDA=1 $(PYTHON) tools/bootstrap.py $@ $(ARGS)

# The C++ tests are plain programs: no Python, no torch.
SANITIZED := build/sanitize
KERNEL_FLAGS := -std=c++20 -Icsrc -pthread -ffp-contract=off -fno-math-errno -fno-trapping-math -Wno-psabi
SANITIZE_FLAGS := $(KERNEL_FLAGS) -O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all
KERNELS_TEST := tests/csrc/kernels_test.cpp $(wildcard csrc/se/cpu/*.cpp)
HEADERS := $(wildcard csrc/*.h csrc/se/*.h csrc/se/*.inl csrc/se/cpu/*.h csrc/se/cpu/*.inl csrc/ids/*.h csrc/ids/*.inl tests/csrc/*.h)
memory := address,undefined
thread := thread

SANITIZED_TESTS := $(foreach kind,memory thread,$(SANITIZED)/kernels_test.$(kind) $(SANITIZED)/snowflake_test.$(kind))
# Barriers and races do not depend on the ISA; an instrumented one takes a minute and a half to compile.
memory_kernels := $(wildcard csrc/se/cpu/*.cpp)
thread_kernels := $(filter-out %/avx512.cpp %/avx512_bf16.cpp,$(memory_kernels))

sanitize:
	@$(MAKE) --no-print-directory -j $$(getconf _NPROCESSORS_ONLN) $(SANITIZED_TESTS)
	@set -e; for program in $(SANITIZED_TESTS); do echo "+ $$program"; ./$$program; done
	@$(PYTHON) tools/bootstrap.py sanitize

# Tests that hardly run the extension, or only in other processes.
PURE_PYTHON := model model_leases model_losses server_leases server_rights reacquire_stores etcd uwsgi deploying ecosystem django \
  rest_framework sql public layout codecs attacks attacks_in_groups

# The ID extension, built into a package of its own and run by its Python tests. libasan must be loaded before Python. A
# process for each file: a fork beside another file's threads may find the sanitizer's allocator locked for ever. The thread
# that pytest starts with each test, to watch over its time, is such a thread: none is started. As many processes as cores;
# each prints when it is done.
sanitize-ids:
	@asan=$$($(CXX) -print-file-name=libasan.so); test -e "$$asan" || \
	  { echo "error: $(CXX) has no libasan.so; install gcc's, or name a gcc with it: make CXX=g++-12 sanitize" >&2; exit 1; }; \
	SENET_FAST_SE=0 SENET_FAST_SANITIZE=$(memory) $(PYTHON) setup.py -q build --force --build-base $(SANITIZED)/ids \
	  --build-lib $(SANITIZED)/ids/lib && \
	printf '%s\n' $(filter-out $(PURE_PYTHON:%=tests/ids/test_%.py),$(wildcard tests/ids/test_*.py)) | \
	  LIBASAN=$$asan xargs -P $$(getconf _NPROCESSORS_ONLN) -I{} sh -c 'printed=$$(LD_PRELOAD=$$LIBASAN ASAN_OPTIONS=detect_leaks=0 \
	    PYTHONMALLOC=malloc PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(SANITIZED)/ids/lib \
	    timeout --foreground -k 10 -s ABRT 1200 $(PYTHON) -X faulthandler -m pytest --capture=sys -o faulthandler_timeout=0 {} \
	    $(ARGS) 2>&1); status=$$?; test $$status != 124 || printed="$$printed (ended after 20 minutes)"; \
	  printf "%s\n" "{}" "$$printed"; exit $$status'

neon: build/neon/kernels_test
	qemu-aarch64 $<

# With clang, the package in a folder of its own: its objects are those of the C++ test, too. One OpenMP runtime is in the process.
CLANG ?= $(firstword $(notdir $(wildcard $(foreach name,clang++ $(foreach n,22 21 20 19 18 17 16,clang++-$(n)),/usr/bin/$(name)))))
CLANG_BUILT := build/clang
ONE_OPENMP := import senet_fast.se as se; print(se.__file__, se._C.build_info()); \
  assert len({line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.split("/")[-1]}) == 1

clang-built:
	@test -n "$(CLANG)" || { echo "error: no clang++ in /usr/bin; install one (Debian: apt install clang-16) or name it: CLANG=..." >&2; exit 1; }
	CXX=$(CLANG) CC=$(subst ++,,$(CLANG)) $(PYTHON) setup.py -q build --build-base $(CLANG_BUILT) --build-lib $(CLANG_BUILT)/lib
	$(CLANG) $(KERNEL_FLAGS) -O1 tests/csrc/kernels_test.cpp $(CLANG_BUILT)/temp.*/senet_fast.se.libsenet_fast/cpu-*.o -o $(CLANG_BUILT)/kernels_test
	$(CLANG_BUILT)/kernels_test
	PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(CLANG_BUILT)/lib $(PYTHON) -c '$(ONE_OPENMP)'
	PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(CLANG_BUILT)/lib $(PYTHON) -m pytest --quick tests/se tests/ids/test_snowflake.py $(ARGS)

# For macOS nothing can be run here. What is compiled there in the place of Linux's calls is, by SENET_PORTABLE: the C++ test
# under the sanitizers (not that of threads, which takes the mapping of a page for a write), the ID tests with the extension.
MACOS := build/macos
MACOS_COMPILE = $(PYTHON) -m ziglang c++ -target aarch64-macos -Wall -Werror -Wno-unknown-pragmas -Wno-pass-failed -Wno-format-security
MACOS_TESTS := snowflake sharing lock_files lock_files_made_anew processes system

$(MACOS)/%.o: %.cpp $(HEADERS)
	@mkdir -p $(@D)
	$(MACOS_COMPILE) $(KERNEL_FLAGS) -O1 -c $< -o $@

macos-compiled: $(patsubst %.cpp,$(MACOS)/%.o,$(KERNELS_TEST) tests/csrc/snowflake_test.cpp)
	CXXFLAGS=-DSENET_PORTABLE SENET_FAST_SE=0 $(PYTHON) setup.py -q build --build-base $(MACOS) --build-lib $(MACOS)/lib
	$(MACOS_COMPILE) -std=c++17 -Icsrc -O1 -I$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))') \
	  -c senet_fast/ids/_snowflake.cpp -o $(MACOS)/_snowflake.o
	$(CXX) $(SANITIZE_FLAGS) -DSENET_PORTABLE -fsanitize=$(memory) tests/csrc/snowflake_test.cpp -o $(MACOS)/snowflake_test
	$(MACOS)/snowflake_test
	PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(MACOS)/lib $(PYTHON) -m pytest --quick $(MACOS_TESTS:%=tests/ids/test_%.py) $(ARGS)

build/neon/kernels_test: $(KERNELS_TEST) $(HEADERS)
	@mkdir -p $(@D)
	aarch64-linux-gnu-g++ $(KERNEL_FLAGS) -O2 -static $(filter %.cpp,$^) -o $@

# The GPU's kernels on the host, from the same source: plain, and under the sanitizers, which see races between threads of the
# GPU and accesses outside of tensors. every=n runs about each n-th case.
EMULATED := build/emulate
EMULATOR := emulator emulator_cluster
EMULATE_FLAGS := -std=c++20 -Icsrc -Itests/csrc/cuda -Wall -Wno-unknown-pragmas
CUDA_HEADERS := $(HEADERS) $(wildcard csrc/se/cuda/*.cuh csrc/se/cuda/*.h tests/csrc/cuda/*.h)
emulate_plain := -O2
emulate_memory := -O1 -g -fno-omit-frame-pointer -fsanitize=$(memory) -fno-sanitize-recover=all
emulate_thread := -O1 -g -fno-omit-frame-pointer -fsanitize=$(thread)
EMULATED_TESTS := $(foreach kind,plain memory thread,$(foreach test,tickets clusters,$(EMULATED)/$(test)_test.$(kind)))
every ?= 1

emulate:
	@$(MAKE) --no-print-directory -j $$(getconf _NPROCESSORS_ONLN) $(EMULATED_TESTS)
	@printf '%s\n' $(EMULATED_TESTS) | TSAN_OPTIONS=halt_on_error=1 ASAN_OPTIONS=detect_leaks=0 \
	  xargs -P $$(getconf _NPROCESSORS_ONLN) -I{} sh -c 'echo "+ {} $(every)"; ./{} $(every)'

define emulated_test
$(EMULATED)/$(1)_test.%: tests/csrc/cuda/$(1)_test.cpp $(foreach file,$(EMULATOR),$(EMULATED)/$(file).%.o) $(CUDA_HEADERS)
	$$(CXX) $(EMULATE_FLAGS) $$(emulate_$$*) $$(filter %.cpp %.o,$$^) -o $$@
endef
$(foreach test,tickets clusters,$(eval $(call emulated_test,$(test))))
# The emulator itself is not for the thread sanitizer: it tells it what orders what.
define emulator_object
$(EMULATED)/$(1).%.o: tests/csrc/cuda/$(1).cpp $(wildcard tests/csrc/cuda/emulator*.h)
	@mkdir -p $$(@D)
	$$(CXX) $(EMULATE_FLAGS) $$(if $$(filter thread,$$*),-O1 -g -DSENET_EMULATE_TSAN,$$(emulate_$$*)) -c $$< -o $$@
endef
$(foreach file,$(EMULATOR),$(eval $(call emulator_object,$(file))))

mutate:
	@$(PYTHON) tests/csrc/cuda/mutate.py $(ARGS)

define sanitized_kernels_test
$(SANITIZED)/$(1)/%.o: csrc/se/cpu/%.cpp $(HEADERS)
	@mkdir -p $$(@D)
	$(CXX) $(SANITIZE_FLAGS) -fsanitize=$($(1)) -c $$< -o $$@
$(SANITIZED)/kernels_test.$(1): tests/csrc/kernels_test.cpp $$($(1)_kernels:csrc/se/cpu/%.cpp=$(SANITIZED)/$(1)/%.o)
	$(CXX) $(SANITIZE_FLAGS) -fsanitize=$($(1)) $$^ -o $$@
endef
$(foreach kind,memory thread,$(eval $(call sanitized_kernels_test,$(kind))))

$(SANITIZED)/snowflake_test.%: tests/csrc/snowflake_test.cpp $(HEADERS)
	@mkdir -p $(@D)
	$(CXX) $(SANITIZE_FLAGS) -fsanitize=$($*) $(filter %.cpp,$^) -o $@

clean:
	rm -rf build demo-report senet_fast/ids/_snowflake.cpp .mypy_cache .ruff_cache .hypothesis .benchmarks
	find senet_fast tests benchmarks tools -name __pycache__ -prune -exec rm -rf {} +
	find senet_fast -name '*.so' -delete
	rm -f senet_fast/se/built_for_torch.txt
