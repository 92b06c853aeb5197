// A file's functions between SENET_TARGET_BEGIN and SENET_TARGET_END are compiled for these features of x86-64, lambdas and
// instances of templates among them, and with vectors of so many bits. gcc would take avx512 and go on with 256.
#pragma once

#define SENET_PRAGMA(...) _Pragma(#__VA_ARGS__)
#if defined(__clang__)
#define SENET_TARGET_BEGIN(features, bits) \
  SENET_PRAGMA(clang attribute push(__attribute__((target(features), min_vector_width(bits))), apply_to = function))
#define SENET_TARGET_END SENET_PRAGMA(clang attribute pop)
#define SENET_NO_OVERLAP SENET_PRAGMA(clang loop vectorize(assume_safety))
#else
#define SENET_TARGET_BEGIN(features, bits) \
  SENET_PRAGMA(GCC push_options) SENET_PRAGMA(GCC target(features ",prefer-vector-width=" #bits))
#define SENET_TARGET_END SENET_PRAGMA(GCC pop_options)
#define SENET_NO_OVERLAP SENET_PRAGMA(GCC ivdep)
#endif
