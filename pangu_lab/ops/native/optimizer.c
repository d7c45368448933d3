/* AdamW and the norm of gradients, in place in the tensors' memory. */

#include <math.h>
#include <stdlib.h>

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
