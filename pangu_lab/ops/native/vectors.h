/* Building blocks of vectorised loops: vectors of eight floats, in GCC's and clang's vector extension, and an
   exponential. In a header because all of it has to be inlined. */

#pragma once

#include <math.h>
#include <string.h>

#include "common.h"

#define LANES 8
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));

INLINE vec load(const float *at) {
    vec value;
    memcpy(&value, at, sizeof value);
    return value;
}

INLINE float total(vec v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

/* e^x to 2 units in the last place; below e^-87 it is e^-87, above e^88 infinity; NaN stays NaN. 2^n times a
   polynomial on [-ln 2 / 2, ln 2 / 2] (Taylor to x^7). */
INLINE float quick_exp(float x) {
    float bounded = x < -87.0f ? -87.0f : x;
    float rounded = bounded > 88.0f ? 88.0f : bounded;
    float whole = rounded * 1.44269504f + 12582912.0f; /* 1.5 · 2^23: the last bits now hold the nearest whole number */
    int32_t bits;
    memcpy(&bits, &whole, sizeof bits);
    whole -= 12582912.0f;
    float r = rounded - whole * 0.693359375f + whole * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int32_t exponent = (int32_t)((uint32_t)bits << 23) + 0x3F800000;
    float power;
    memcpy(&power, &exponent, sizeof power);
    return bounded > 88.0f ? INFINITY : p * power;
}
