/* What every C file of the kernels needs: one function for several processors, and what follows a product. */

#pragma once

#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
/* Seen from outside; everything else is hidden (-fvisibility), so that no other library's name can come between. */
#define EXPORT __attribute__((visibility("default")))
/* The function exists for AVX-512, AVX2 and neither; the loader takes what the processor can do. On static functions
   alone: GCC 12 shows the others from outside. */
#if defined(__x86_64__) && defined(__gnu_linux__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

/* What becomes of a product: an activation of it, itself, or what lies there already plus it. */
enum { TANH_GELU = 0, ERF_GELU = 1, FAST_GELU = 2, NONE = 3, RESIDUAL = 4 };

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
