/* Softmax of a row, in place: attention in training, of prompts and of decode steps, and the loss. */

#include <string.h>

#include "rows.h"
#include "vectors.h"

/* A NaN need not become the maximum: its own exponential is NaN, and so is the sum. */
CLONES static struct softmax weighted_softmax(float *row, int64_t count, float scale, float weight) {
    float highest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : highest)
    for (int64_t i = 0; i < count; i++)
        highest = row[i] > highest ? row[i] : highest;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++) {
        row[i] = quick_exp((row[i] - highest) * scale);
        sum += row[i];
    }
    float share = weight / sum;
    for (int64_t i = 0; i < count; i++)
        row[i] *= share;
    return (struct softmax){highest, sum};
}

struct softmax softmax(float *row, int64_t count, float scale, float weight) {
    return weighted_softmax(row, count, scale, weight);
}

struct softmax softmax_between(float *row, int64_t first, int64_t last, int64_t count, float scale) {
    memset(row, 0, first * sizeof *row);
    memset(row + last, 0, (count - last) * sizeof *row);
    return weighted_softmax(row + first, last - first, scale, 1.0f);
}
