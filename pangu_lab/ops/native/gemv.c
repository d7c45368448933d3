/* GEMV: products of one or a few rows with fp32 or int8 weights, for decode steps.

   With one row a product reads every weight once and multiplies it once, so the step is bound by memory bandwidth.
   To come close to that bound, one thread reads whole rows of weights, as three sequential streams; bias and residual
   are applied while a result is in a register, the activation while it is in the first-level cache; nothing is
   copied.

   Every (row of weights, sequence) pair adds its products in one order: 8 running sums over the inputs, then those 8.
   The order does not depend on the number of sequences: a sequence gets the same bits alone and in a batch. */

#include "network.h"
#include "rows.h"
#include "thread_pool.h"
#include "vectors.h"

#define STEP (4 * LANES) /* weights of a row taken at once */

/* Bytes of a stream that are prefetched into the second-level cache where each weight is used in more than one
   product: the processor's own prefetching stops while it multiplies, and prefetching into the first level is
   limited to a few lines. */
#define AHEAD 6144

/* Vector k of the four that begin at weight i of a row. Bytes are stored so that one vector of words holds all four:
   lane l has the weights i + l, i + 8 + l, i + 16 + l and i + 24 + l, each extracted by two shifts (GCC 12 turns a
   direct conversion of eight bytes into single steps, ten times slower). */
INLINE vec load_weight(const void *row, int64_t i, int k, int quantised) {
    if (!quantised)
        return load((const float *)row + i + k * LANES);
    ints word;
    memcpy(&word, (const int8_t *)row + i, sizeof word);
    return __builtin_convertvector((word << (24 - 8 * k)) >> 24, vec);
}

INLINE float scalar_weight(const void *row, int64_t i, int quantised) {
    return quantised ? ((const int8_t *)row)[i] : ((const float *)row)[i];
}

enum {
    MOST = 4,     /* sequences multiplied with a row of weights at once */
    ROWS = 3,     /* of weights, read at once, each as a stream of its own */
    OUTPUTS = 96, /* rows of weights per work item */
};

/* sums[r][b] = weights of row r · x of sequence b, for ROWS rows and COUNT sequences. */
INLINE void tile(const char *weight, int64_t stride, const float *x, int64_t in, int rows, int count, int quantised,
                 float sums[ROWS][MOST]) {
    vec running[ROWS][MOST];
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < count; b++)
            running[r][b] = (vec){0};
    int64_t i = 0;
    for (; i + STEP <= in; i += STEP) {
        for (int r = 0; count > 1 && r < rows; r++)
            for (int line = 0; line < STEP * (quantised ? 1 : 4); line += 64)
                __builtin_prefetch(weight + r * stride + i * (quantised ? 1 : 4) + AHEAD + line, 0, 2);
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            vec w[ROWS];
            for (int r = 0; r < rows; r++)
                w[r] = load_weight(weight + r * stride, i, k, quantised);
            for (int b = 0; b < count; b++) {
                vec value = load(x + b * in + i + k * LANES);
                for (int r = 0; r < rows; r++)
                    running[r][b] += w[r] * value;
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < count; b++) {
            sums[r][b] = total(running[r][b]);
            for (int64_t j = i; j < in; j++)
                sums[r][b] += scalar_weight(weight + r * stride, j, quantised) * x[b * in + j];
        }
}

struct gemv {
    const struct matrix *matrix;
    const float *x;
    float *y;
    int64_t count;
    int after;
};

INLINE void finish(const struct gemv *p, int64_t row, int64_t b, float sum) {
    const struct matrix *m = p->matrix;
    if (m->scale)
        sum *= m->scale[row];
    if (m->bias)
        sum += m->bias[row];
    float *y = p->y + b * m->out + row;
    *y = p->after == RESIDUAL ? *y + sum : sum;
}

/* ``rows`` rows with stride ``apart``, for all sequences. */
INLINE void multiply_rows(const struct gemv *p, int64_t row, int rows, int64_t apart, int quantised) {
    int64_t in = p->matrix->in, line = in * (quantised ? 1 : 4), stride = line * apart;
    const char *weight = (const char *)p->matrix->weight + row * line;
    float sums[ROWS][MOST];
    for (int64_t b = 0; b < p->count; b += MOST) {
        int count = (int)smaller(p->count - b, MOST);
        const float *x = p->x + b * in;
        switch (count) { /* compile-time constants, so that the running sums stay in registers */
        case 1: tile(weight, stride, x, in, rows, 1, quantised, sums); break;
        case 2: tile(weight, stride, x, in, rows, 2, quantised, sums); break;
        case 3: tile(weight, stride, x, in, rows, 3, quantised, sums); break;
        default: tile(weight, stride, x, in, rows, MOST, quantised, sums);
        }
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < count; c++)
                finish(p, row + r * apart, b + c, sums[r][c]);
    }
}

/* Each third of the rows is one of three streams: a processor prefetches for long sequential reads. Three adjacent
   rows are read at half the speed, because each stream then ends with its row. */
INLINE void multiply_streams(const struct gemv *p, int64_t first, int64_t last, int quantised) {
    int64_t third = (last - first) / ROWS, row = first;
    for (; row < first + third; row++)
        multiply_rows(p, row, ROWS, third, quantised);
    for (row = first + ROWS * third; row < last; row++)
        multiply_rows(p, row, 1, 1, quantised);
}

CLONES static void multiply_floats(const struct gemv *p, int64_t first, int64_t last) {
    multiply_streams(p, first, last, 0);
}

CLONES static void multiply_bytes(const struct gemv *p, int64_t first, int64_t last) {
    multiply_streams(p, first, last, 1);
}

static void multiply_range(void *context, int64_t first, int64_t last) {
    const struct gemv *p = context;
    (p->matrix->scale ? multiply_bytes : multiply_floats)(p, first, last);
    for (int64_t b = 0; p->after < NONE && b < p->count; b++) {
        float *y = p->y + b * p->matrix->out + first;
        activate(y, NULL, y, last - first, p->after);
    }
}

void gemv(const struct matrix *m, const float *x, float *y, int64_t count, int after) {
    parallel_for(multiply_range, &(struct gemv){m, x, y, count, after}, m->out, OUTPUTS);
}

/* For each row of ``weight`` (out, in): int8 values in the order of ``load_weight`` and the row's scale; the row itself
   is overwritten with the dequantised values. */
EXPORT void quantise(float *weight, int64_t out, int64_t in, int8_t *quantised, float *scale) {
    for (int64_t row = 0; row < out; row++) {
        float highest = 0;
        for (int64_t i = 0; i < in; i++)
            highest = fmaxf(highest, fabsf(weight[row * in + i]));
        scale[row] = highest / 127.0f;
        float inverse = highest > 0 ? 127.0f / highest : 0;
        for (int64_t i = 0; i < in; i++) {
            int64_t start = i / STEP * STEP, place = i - start;
            int64_t at = start + STEP <= in ? start + place % LANES * 4 + place / LANES : i;
            quantised[row * in + at] = (int8_t)lrintf(weight[row * in + i] * inverse);
            weight[row * in + i] = quantised[row * in + at] * scale[row];
        }
    }
}
