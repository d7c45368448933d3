/* LayerNorm of rows and its gradients, for all callers, and the training operators. */

#include <string.h>

#include "operator.h"
#include "rows.h"
#include "scratch.h"
#include "thread_pool.h"
#include "vectors.h"

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

struct norm {
    const float *x, *gamma, *beta, *dy;
    float *y, *partial; /* partial (parts, 2, width): what each part adds to dgamma and dbeta */
    float epsilon;
    int64_t rows, width;
};

enum {
    ROWS = 16,  /* per work item */
    PARTS = 16, /* of the rows, in the backward pass */
};

CLONES static void norm_row(const struct norm *n, int64_t row) {
    const float *x = n->x + row * n->width, *gamma = n->gamma, *beta = n->beta;
    float *y = n->y + row * n->width, mean, scale;
    moments(x, n->width, n->epsilon, &mean, &scale);
    for (int64_t i = 0; i < n->width; i++)
        y[i] = (x[i] - mean) * scale * gamma[i] + beta[i];
}

static void norm_range(void *context, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
        norm_row(context, row);
}

void layer_norm_rows(const float *x, const float *gamma, const float *beta, float epsilon, int64_t rows, int64_t width,
                     float *y) {
    struct norm n = {.x = x, .gamma = gamma, .beta = beta, .epsilon = epsilon, .rows = rows, .width = width, .y = y};
    parallel_for(norm_range, &n, rows, ROWS);
}

CLONES static void norm_row_backward(const struct norm *n, int64_t row, float *dgamma, float *dbeta) {
    const float *x = n->x + row * n->width, *dy = n->dy + row * n->width;
    float *dx = n->y + row * n->width, mean, scale, sum = 0, along = 0;
    moments(x, n->width, n->epsilon, &mean, &scale);
#pragma omp simd reduction(+ : sum, along)
    for (int64_t i = 0; i < n->width; i++) {
        float normed = (x[i] - mean) * scale, slope = dy[i] * n->gamma[i];
        sum += slope, along += slope * normed;
    }
    sum /= n->width, along /= n->width;
    for (int64_t i = 0; i < n->width; i++) {
        float normed = (x[i] - mean) * scale;
        dgamma[i] += dy[i] * normed;
        dbeta[i] += dy[i];
        dx[i] = scale * (dy[i] * n->gamma[i] - sum - along * normed);
    }
}

static void backward_part(void *context, int64_t part, int64_t end) {
    const struct norm *n = context;
    int64_t last = end * n->rows / PARTS;
    float *dgamma = n->partial + part * 2 * n->width;
    memset(dgamma, 0, 2 * n->width * sizeof *dgamma);
    for (int64_t row = part * n->rows / PARTS; row < last; row++)
        norm_row_backward(n, row, dgamma, dgamma + n->width);
}

/* x (rows, width), gamma, beta (width,), epsilon (1,) → (rows, width) */
OPERATOR(layer_norm) {
    layer_norm_rows(IN(0), IN(1), IN(2), *IN(3), shapes[0][0], shapes[0][1], OUT(4));
    return 0;
}

/* x, gamma, dy, epsilon → dx, dgamma, dbeta */
OPERATOR(layer_norm_backward) {
    int64_t width = shapes[0][1];
    struct norm n = {IN(0), IN(1), NULL, IN(2), OUT(4), aligned_floats(PARTS * 2 * width), *IN(3), shapes[0][0], width};
    if (!n.partial)
        return 1;
    parallel_for(backward_part, &n, PARTS, 1);
    for (int which = 0; which < 2; which++) {
        float *sums = OUT(5 + which);
        memcpy(sums, n.partial + which * width, width * sizeof *sums);
        for (int64_t part = 1; part < PARTS; part++)
            for (int64_t i = 0; i < width; i++)
                sums[i] += n.partial[(2 * part + which) * width + i];
    }
    free(n.partial);
    return 0;
}
