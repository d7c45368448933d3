/* What is done to rows between the products: LayerNorm and the activations. */

#ifndef PANGU_LAB_ROWS_H
#define PANGU_LAB_ROWS_H

#include "common.h"

INLINE void moments(const float *x, int64_t width, float epsilon, float *mean, float *scale) {
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++)
        sum += x[i];
    float middle = sum / width;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; i++)
        squares += (x[i] - middle) * (x[i] - middle);
    *mean = middle, *scale = 1.0f / sqrtf(squares / width + epsilon);
}

INLINE void norm_to(const float *x, const float *gamma, const float *beta, float epsilon, int64_t width, float *y) {
    float mean, scale;
    moments(x, width, epsilon, &mean, &scale);
    for (int64_t i = 0; i < width; i++)
        y[i] = (x[i] - mean) * scale * gamma[i] + beta[i];
}

/* x · sigmoid(u(x)), u = x (linear + cubic x²): the tanh form and the quick form of GELU. */
INLINE void sigmoid_gelu(const float *x, const float *dy, float *y, int64_t count, float linear, float cubic) {
    for (int64_t i = 0; i < count; i++) {
        float square = x[i] * x[i], u = x[i] * (linear + cubic * square), s = 1.0f / (1.0f + quick_exp(-u));
        y[i] = dy ? dy[i] * (s + x[i] * s * (1.0f - s) * (linear + 3.0f * cubic * square)) : x[i] * s;
    }
}

/* x Φ(x), with the error function of Abramowitz & Stegun 7.1.26 (absolute error 1.5e-7). */
INLINE void erf_gelu(const float *x, const float *dy, float *y, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        float z = fabsf(x[i]) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * z), bell = quick_exp(-z * z);
        float tail = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
        float upper = 1.0f - 0.5f * tail * bell, phi = x[i] < 0 ? 1.0f - upper : upper;
        y[i] = dy ? dy[i] * (phi + x[i] * 0.39894228f * bell) : x[i] * phi;
    }
}

CLONES static void activate(const float *x, const float *dy, float *y, int64_t count, int kind) {
    if (kind == ERF_GELU)
        dy ? erf_gelu(x, dy, y, count) : erf_gelu(x, NULL, y, count);
    else if (kind == FAST_GELU)
        dy ? sigmoid_gelu(x, dy, y, count, 1.702f, 0) : sigmoid_gelu(x, NULL, y, count, 1.702f, 0);
    else
        dy ? sigmoid_gelu(x, dy, y, count, 1.5957691216f, 0.0713548163f)
           : sigmoid_gelu(x, NULL, y, count, 1.5957691216f, 0.0713548163f);
}

#endif
