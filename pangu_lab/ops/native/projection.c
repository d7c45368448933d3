/* The products of the block with its weights, and their epilogue: bias, activation, residual.

   A decode step reads every weight once (gemv.c). A prompt multiplies matrices (gemm.c); there every sum has the same
   order, the bias first, in both forms used here: a token's keys and values have the same bits whether a text is fed
   in whole or in chunks. */

#include "gemm.h"
#include "network.h"
#include "rows.h"
#include "thread_pool.h"

struct projection { /* y (rows, out) */
    const struct matrix *matrix;
    float *y, *transposed; /* (out, rows) */
    const float *sums;
    int64_t rows;
};

enum {
    GEMV_ROWS = 128, /* up to this many rows the weights are not copied */
    OUTPUTS = 64,    /* per work item */
    ADDED = 16384,   /* numbers per work item of an addition */
};

static void begin_with_bias(void *context, int64_t first, int64_t last) {
    const struct projection *p = context;
    for (int64_t i = first; i < last; i++)
        for (int64_t row = 0; row < p->rows; row++)
            p->transposed[i * p->rows + row] = p->matrix->bias[i];
}

static void transpose_back(void *context, int64_t first, int64_t last) {
    const struct projection *p = context;
    transpose(p->y + first, p->matrix->out, p->transposed + first * p->rows, p->rows, last - first, p->rows);
}

/* Copying the weights into panels costs more than multiplying a few rows: for few rows the transposed product is
   computed, whose first matrix is the weights, which are then read in place. */
static void project_few(struct projection p, const float *x) {
    int64_t in = p.matrix->in, out = p.matrix->out;
    struct product transposed = product(0, 1, out, p.rows, in, p.matrix->floats, in, x, in, p.transposed, p.rows);
    transposed.add = 1;
    parallel_for(begin_with_bias, &p, out, OUTPUTS);
    gemm(transposed);
    parallel_for(transpose_back, &p, out, OUTPUTS);
}

static void project_many(struct projection p, const float *x) {
    int64_t in = p.matrix->in, out = p.matrix->out;
    struct product straight = product(0, 1, p.rows, out, in, x, in, p.matrix->floats, in, p.y, out);
    straight.bias = p.matrix->bias;
    gemm(straight);
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
    struct projection made = {m, after == RESIDUAL ? p->sums : y, p->transposed, p->sums, p->rows};
    (p->rows > GEMV_ROWS ? project_many : project_few)(made, x);
    made.y = y;
    if (after == RESIDUAL)
        parallel_for(add_sums, &made, p->rows * m->out, ADDED);
    else if (after != NONE)
        activate_all(y, NULL, y, p->rows * m->out, after);
}
