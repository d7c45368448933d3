/* Shared by all C files of the kernels: multiversioned functions, and the epilogue of a product. */

#pragma once

#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
/* Exported; everything else is hidden (-fvisibility), so that it cannot clash with another library's names. */
#define EXPORT __attribute__((visibility("default")))
/* Compiles the function for AVX-512, AVX2 and neither; the loader picks what the processor supports. For static
   functions only: GCC 12 exports the others. With ONE_TARGET there is only the one that the compiler's options name. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(ONE_TARGET)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

/* The epilogue of a product: apply an activation, store as it is, or add to what is there already. */
enum { TANH_GELU = 0, ERF_GELU = 1, FAST_GELU = 2, NONE = 3, RESIDUAL = 4 };

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
