#if defined(__x86_64__)
#define SENET_ISA avx512
#define SENET_ISA_NAME "avx512"
#define SENET_VECTOR_BYTES 64
#include <immintrin.h>

#include "se/cpu/kernels.h"
#include "se/cpu/machine.h"
#include "se/cpu/target.h"

SENET_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c", 512)
#include "se/cpu/kernels.inl"
SENET_TARGET_END

static const senet::RegisterIsa registration({SENET_ISA_NAME, 2,
                                              [] {
                                                return __builtin_cpu_supports("avx512f") &&
                                                       __builtin_cpu_supports("avx512bw") &&
                                                       __builtin_cpu_supports("avx512vl") &&
                                                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx2") &&
                                                       __builtin_cpu_supports("fma") && senet::has_f16c();
                                              },
                                              &senet::avx512::kernels});
#endif
