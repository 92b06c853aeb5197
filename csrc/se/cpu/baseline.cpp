// What every processor of the architecture has: SSE2 on x86-64, NEON on aarch64.
#define SENET_ISA baseline
#define SENET_VECTOR_BYTES 16
#if defined(__aarch64__)
#define SENET_ISA_NAME "neon"
#include <arm_neon.h>
#else
#if defined(__x86_64__)
#include <emmintrin.h>
#endif
#define SENET_ISA_NAME "baseline"
#endif
#include "se/cpu/kernels.h"
#include "se/cpu/target.h"

#include "se/cpu/kernels.inl"

static const senet::RegisterIsa registration({SENET_ISA_NAME, 0, [] { return true; }, &senet::baseline::kernels});
