/* The network, over the key-value cache: new tokens in, logits out. The only place in C that has the order of the
   layers; a decode step, a batch of them and a prompt all use this function.

   A sequence's result does not depend on what is decoded with it, nor on the chunks in which a prompt is fed: the form
   of a product or of attention is chosen by whether a call is a decode step (n = 1), and every sum has one order. NaN
   and infinity propagate as in IEEE arithmetic; denormals are kept. */

#include "network.h"
#include "rows.h"
#include "thread_pool.h"

enum {
    ROWS = 16,     /* per work item */
    GEMV_ROWS = 8, /* up to this many rows each weight is read once, as in a decode step */
};

CLONES static void embed(void *context, int64_t first, int64_t last) {
    const struct pass *p = context;
    const struct network *n = p->network;
    for (int64_t row = first; row < last; row++) {
        float *restrict x = p->x + row * n->hidden;
        widen(&n->head, p->ids[row], x);
        if (!n->positions)
            continue;
        const float *restrict position = n->positions + p->positions[row] * n->hidden;
        for (int64_t i = 0; i < n->hidden; i++)
            x[i] += position[i];
    }
}

static void norm(struct pass *p) {
    const struct network *n = p->network;
    float *x = p->x;
    layer_norm_rows(x, n->gamma, n->beta, (float)n->epsilon, p->rows, n->hidden, p->normed);
    p->x = p->normed, p->normed = x;
}

static void logits_of(const struct pass *p, float *logits) {
    const struct network *n = p->network;
    if (p->n == 1 || p->rows <= GEMV_ROWS)
        gemv(&n->head, p->x, logits, p->rows, NONE);
    else
        multiply(&n->head, p->x, logits, p->rows);
}

/* Floats of scratch per row: for the matrices of ``struct pass``. */
static int64_t widest(const struct network *n) { return larger(3 * n->hidden, n->inner); }

/* How many floats ``forward`` needs as scratch. */
EXPORT int64_t scratch_size(const struct network *n, int64_t tokens, int64_t rows) {
    return larger(tokens, rows) * (7 * n->hidden + n->inner + widest(n));
}

static void lay_out(struct pass *p, float *scratch, int64_t rows) {
    int64_t hidden = rows * p->network->hidden;
    p->x = scratch;
    p->normed = p->x + hidden;
    p->qkv = p->normed + hidden;
    p->mixed = p->qkv + 3 * hidden;
    p->sums = p->mixed + hidden;
    p->inner = p->sums + hidden;
    p->transposed = p->inner + rows * p->network->inner;
}

/* logits (rows, vocabulary) of the tokens ``asked`` (rows,), indices from 0 to batch · n, for n new tokens each of
   ``batch`` sequences; the other arrays as in ``struct pass``. The caller has checked that all are in range. */
EXPORT void forward(const struct network *n, const int32_t *ids, const int32_t *positions, const int32_t *write,
                    const int32_t *read, int64_t batch, int64_t count, int64_t span, const int32_t *asked, int64_t rows,
                    float *scratch, float *logits) {
    struct pass p = {.network = n, .batch = batch, .n = count, .span = span, .rows = batch * count,
                     .ids = ids, .positions = positions, .write = write, .read = read};
    lay_out(&p, scratch, larger(p.rows, rows));
    parallel_for(embed, &p, p.rows, ROWS);
    for (int64_t layer = 0; layer < n->layers - 1; layer++)
        block(&p, n->layer + layer, NULL, p.rows);
    norm(&p);
    block(&p, n->layer + n->layers - 1, asked, rows);
    logits_of(&p, logits);
}
