/* Row operations between the products, for training, prompts and decode steps alike. Each has a C file:
   softmax.c, layernorm.c, activations.c. */

#pragma once

#include "common.h"

struct softmax { /* the statistics of a row's softmax: its maximum, Σ e^(scale · (number − maximum)) */
    float highest, sum;
};

/* row (count,) → weight · softmax(scale · row), in place. */
struct softmax softmax(float *row, int64_t count, float scale, float weight);

/* row (count,) → the softmax of the elements from ``first`` to ``last``, 0 elsewhere; in place. */
struct softmax softmax_between(float *row, int64_t first, int64_t last, int64_t count, float scale);

/* y (rows, width) = LayerNorm of each row of x; by all threads. */
void layer_norm_rows(const float *x, const float *gamma, const float *beta, float epsilon, int64_t rows, int64_t width,
                     float *y);

/* y = activation(x), or with dy its derivative times dy; ``kind`` one of the three; by this thread. */
void activate(const float *x, const float *dy, float *y, int64_t count, int kind);

/* The same by all threads. */
void activate_all(const float *x, const float *dy, float *y, int64_t count, int kind);
