#if defined(__x86_64__)
// AVX-512 with its bfloat16 conversions: Cooper Lake, Sapphire Rapids, Zen 4 and later. The same with AMX's tiles for matrix
// products: Sapphire Rapids and later.
#define SENET_ISA avx512_bf16
#define SENET_ISA_NAME "avx512_bf16"
#define SENET_BF16_CONVERSION
#define SENET_VECTOR_BYTES 64
#include <immintrin.h>

#include "se/cpu/kernels.h"
#include "se/cpu/machine.h"
#include "se/cpu/target.h"

namespace senet::avx512 {
extern const Kernels kernels;
}

SENET_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c,amx-tile,amx-bf16", 512)
#include "se/cpu/kernels.inl"
SENET_TARGET_END

// Behind the target region: every machine runs this when it loads the library. AVX-512's table is there by then (constinit).
static senet::Kernels table(const char* name, const senet::ProductKernels& product) {
  senet::Kernels table = senet::avx512::kernels;
  table.name = name;
  table.data_bf16 = senet::avx512_bf16::bf16_data;
  table.weight_bf16 = senet::avx512_bf16::bf16_weights;
  table.product_bf16 = product;
  return table;
}
static const senet::Kernels kernels = table(SENET_ISA_NAME, senet::avx512_bf16::bf16_product),
                            amx_kernels = table("amx", senet::avx512_bf16::amx_product);

static bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx2") &&
         __builtin_cpu_supports("fma") && senet::has_f16c();
}

static const senet::RegisterIsa registration({SENET_ISA_NAME, 3, supported, &kernels}),
    amx_registration({"amx", 4, [] { return supported() && senet::may_use_amx(); }, &amx_kernels});
#endif
