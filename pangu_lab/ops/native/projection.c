/* The products of the block with its weights, and their epilogue: bias, activation, residual.

   A decode step reads every weight once (gemv.c). A prompt multiplies matrices (gemm.c); there every sum has the same
   order, the bias first, in both forms used here: a token's keys and values have the same bits whether a text is fed
   in whole or in chunks. */

#include "gemm.h"
#include "network.h"
#include "rows.h"
#include "scratch.h"
#include "thread_pool.h"

struct projection { /* y (rows, outputs), lines ``line`` apart */
    const struct matrix *matrix;
    float *y, *transposed; /* (outputs, rows) */
    const float *sums;
    int64_t rows, line;
    int64_t first;  /* outputs from here on, as many as weights are given: */
    int64_t outputs;
    const float *weights; /* in fp32 */
    float *widened;
};

enum {
    GEMV_ROWS = 128, /* up to this many rows the weights are not copied */
    OUTPUTS = 64,    /* per work item */
    ADDED = 16384,   /* numbers per work item of an addition */
    WIDENED = 384,   /* rows of weights made fp32 at a time: they stay in the second-level cache */
    WIDENED_PART = 16,
};

static void begin_with_bias(void *context, int64_t first, int64_t last) {
    const struct projection *p = context;
    for (int64_t i = first; i < last; i++)
        for (int64_t row = 0; row < p->rows; row++)
            p->transposed[i * p->rows + row] = p->matrix->bias[p->first + i];
}

static void transpose_back(void *context, int64_t first, int64_t last) {
    const struct projection *p = context;
    transpose(p->y + p->first + first, p->line, p->transposed + first * p->rows, p->rows, last - first, p->rows);
}

/* Copying the weights into panels costs more than multiplying a few rows: for few rows the transposed product is
   computed, whose first matrix is the weights, which are then read in place. */
static void project_few(struct projection p, const float *x) {
    int64_t in = p.matrix->in, out = p.outputs;
    struct product transposed = product(0, 1, out, p.rows, in, p.weights, in, x, in, p.transposed, p.rows);
    transposed.add = 1;
    parallel_for(begin_with_bias, &p, out, OUTPUTS);
    gemm(transposed);
    parallel_for(transpose_back, &p, out, OUTPUTS);
}

static void project_many(struct projection p, const float *x) {
    int64_t in = p.matrix->in;
    struct product straight = product(0, 1, p.rows, p.outputs, in, x, in, p.weights, in, p.y + p.first, p.line);
    straight.bias = p.matrix->bias ? p.matrix->bias + p.first : NULL;
    gemm(straight);
}

static void widen_rows(void *context, int64_t first, int64_t last) {
    const struct projection *p = context;
    for (int64_t row = first; row < last; row++)
        widen(p->matrix, p->first + row, p->widened + row * p->matrix->in);
}

/* The product in parts, whose weights are made fp32 just before; the bits are those of the whole. */
static void by_parts(struct projection p, const float *x, void (*project)(struct projection, const float *)) {
    const struct matrix *m = p.matrix;
    p.first = 0, p.outputs = m->out, p.weights = m->floats;
    if (m->floats) {
        project(p, x);
        return;
    }
    p.weights = p.widened = thread_scratch(OF_WIDENED, smaller(WIDENED, m->out) * m->in);
    for (; p.first < m->out; p.first += WIDENED) {
        p.outputs = smaller(WIDENED, m->out - p.first);
        parallel_for(widen_rows, &p, p.outputs, WIDENED_PART);
        project(p, x);
    }
}

void multiply(const struct matrix *m, const float *x, float *y, int64_t rows) {
    by_parts((struct projection){.matrix = m, .y = y, .rows = rows, .line = m->out}, x, project_many);
}

CLONES static void add_sums(void *context, int64_t first, int64_t last) {
    const struct projection *p = context;
    for (int64_t i = first; i < last; i++)
        p->y[i] += p->sums[i];
}

void project(const struct pass *p, const struct matrix *m, const float *x, float *y, int after) {
    if (p->n == 1) {
        gemv(m, x, y, p->rows, after);
        return;
    }
    struct projection made = {.matrix = m, .y = after == RESIDUAL ? p->sums : y, .transposed = p->transposed,
                              .sums = p->sums, .rows = p->rows, .line = m->out};
    by_parts(made, x, p->rows > GEMV_ROWS ? project_many : project_few);
    made.y = y;
    if (after == RESIDUAL)
        parallel_for(add_sums, &made, p->rows * m->out, ADDED);
    else if (after != NONE)
        activate_all(y, NULL, y, p->rows * m->out, after);
}
