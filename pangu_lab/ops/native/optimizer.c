/* AdamW and the norm of gradients, in place in the tensors' memory; Muon's orthogonal update. */

#include <math.h>
#include <stdlib.h>

#include "gemm.h"
#include "scratch.h"
#include "thread_pool.h"

enum { GRAIN = 16384 }; /* numbers per work item */

struct tensor { /* one parameter */
    float *weight, *first, *second; /* and its moments */
    const float *gradient;
    int64_t size, decays;
};

struct update {
    const struct tensor *tensor;
    float factor, rate, keep, beta1, beta2, epsilon;
    double *squares; /* of each part */
};

CLONES static double sum_of_squares(const float *x, int64_t count) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++)
        sum += (double)x[i] * x[i];
    return sum;
}

static void square_range(void *context, int64_t first, int64_t last) {
    const struct update *u = context;
    u->squares[first / GRAIN] = sum_of_squares(u->tensor->gradient + first, last - first);
}

/* Σ x², or NaN if memory runs out */
EXPORT double squared_norm(const float *x, int64_t size) {
    int64_t parts = (size + GRAIN - 1) / GRAIN;
    struct tensor t = {.gradient = x, .size = size};
    struct update u = {.tensor = &t, .squares = malloc(parts * sizeof(double))};
    double total = 0;
    if (!u.squares)
        return NAN;
    parallel_for(square_range, &u, size, GRAIN);
    for (int64_t part = 0; part < parts; part++)
        total += u.squares[part];
    free(u.squares);
    return total;
}

CLONES static void adamw(void *context, int64_t start, int64_t last) {
    const struct update *u = context;
    const struct tensor *t = u->tensor;
    int64_t count = last - start;
    float *restrict weight = t->weight + start, *restrict first = t->first + start;
    float *restrict second = t->second + start;
    const float *restrict gradient = t->gradient + start;
    float keep = t->decays ? u->keep : 1.0f;
    for (int64_t i = 0; i < count; i++) {
        float g = gradient[i] * u->factor;
        first[i] += (g - first[i]) * (1.0f - u->beta1);
        second[i] += (g * g - second[i]) * (1.0f - u->beta2);
        weight[i] = weight[i] * keep - u->rate * first[i] / (sqrtf(second[i]) + u->epsilon);
    }
}

/* AdamW in place; ``rate`` and ``epsilon`` include the bias correction. */
EXPORT void update(const struct tensor *tensors, int64_t count, float factor, float rate, float keep, float beta1,
                   float beta2,
            float epsilon) {
    for (int64_t i = 0; i < count; i++) {
        struct update u = {tensors + i, factor, rate, keep, beta1, beta2, epsilon, NULL};
        parallel_for(adamw, &u, tensors[i].size, GRAIN);
    }
}

/* Muon: ops/muon.py has the formula. */
enum { STEPS = 5 };

static const float A = 3.4445f, B = -4.7750f, C = 2.0315f, EPSILON = 1e-7f;

struct polynomial {
    float *square; /* (side, side): gram², then A + B gram + C gram² */
    const float *gram;
    int64_t side;
};

static void polynomial_rows(void *context, int64_t first, int64_t last) {
    const struct polynomial *p = context;
    for (int64_t row = first; row < last; row++) {
        float *restrict to = p->square + row * p->side;
        const float *restrict gram = p->gram + row * p->side;
        for (int64_t i = 0; i < p->side; i++)
            to[i] = B * gram[i] + C * to[i];
        to[row] += A;
    }
}

/* out = x (rows, columns) with singular values near 1; ``other`` has the same size, ``gram`` and ``square`` the smaller
   side's square. */
static void orthogonalise(const float *x, float *out, float *other, float *gram, float *square, int64_t rows,
                          int64_t columns) {
    int tall = rows > columns;
    int64_t side = tall ? columns : rows, length = tall ? rows : columns;
    float scale = 1.0f / ((float)sqrt(squared_norm(x, rows * columns)) + EPSILON);
    for (int64_t i = 0; i < rows * columns; i++)
        other[i] = x[i] * scale;
    float *from = other, *to = out; /* STEPS is odd: the last one ends in ``out`` */
    for (int step = 0; step < STEPS; step++) {
        gemm(product(tall, !tall, side, side, length, from, columns, from, columns, gram, side));
        gemm(product(0, 0, side, side, side, gram, side, gram, side, square, side));
        parallel_for(polynomial_rows, &(struct polynomial){square, gram, side}, side, 32);
        gemm(tall ? product(0, 0, rows, side, side, from, columns, square, side, to, columns)
                  : product(0, 0, side, columns, side, square, side, from, columns, to, columns));
        float *given = from;
        from = to;
        to = given;
    }
}

/* out = each of the matrices x (matrices, rows, columns) made orthogonal; not 0 if memory runs out. */
EXPORT int orthogonalised(const float *x, float *out, int64_t matrices, int64_t rows, int64_t columns) {
    int64_t size = rows * columns, side = smaller(rows, columns);
    float *work = aligned_floats(size + 2 * side * side);
    if (!work)
        return 1;
    for (int64_t i = 0; i < matrices; i++)
        orthogonalise(x + i * size, out + i * size, work, work + size, work + size + side * side, rows, columns);
    free(work);
    return 0;
}
