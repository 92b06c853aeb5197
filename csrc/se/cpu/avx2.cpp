#if defined(__x86_64__)
#define SENET_ISA avx2
#define SENET_ISA_NAME "avx2"
#define SENET_VECTOR_BYTES 32
#include <immintrin.h>

#include "se/cpu/kernels.h"
#include "se/cpu/machine.h"
#include "se/cpu/target.h"

SENET_TARGET_BEGIN("avx2,fma,f16c", 256)
#include "se/cpu/kernels.inl"
SENET_TARGET_END

static const senet::RegisterIsa registration(
    {SENET_ISA_NAME, 1, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && senet::has_f16c(); },
     &senet::avx2::kernels});
#endif
