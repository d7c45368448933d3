/* Vectors of eight floats, in GCC's and clang's vector extension. Inlined: they are what loops are made of. */

#ifndef PANGU_LAB_LANES_H
#define PANGU_LAB_LANES_H

#include <string.h>

#include "common.h"

#define LANES 8
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

INLINE vec load(const float *at) {
    vec value;
    memcpy(&value, at, sizeof value);
    return value;
}

INLINE float total(vec v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

#endif
