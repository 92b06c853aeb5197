#if defined(__x86_64__)
#define SENET_ISA avx2
#define SENET_ISA_NAME "avx2"
#define SENET_VECTOR_BYTES 32
#include <immintrin.h>

#include "se/cpu/kernels.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#include "se/cpu/kernels.inl"
#pragma GCC pop_options

static const senet::RegisterIsa registration({SENET_ISA_NAME, 1,
                                              [] {
                                                return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                                                       __builtin_cpu_supports("f16c");
                                              },
                                              &senet::avx2::kernels});
#endif
