/* Attention as training operators: within documents, with dropout of the probabilities, and its gradients.

   Of the probabilities only the logarithm of each row's sum is kept. Queries, keys and values are read in place, as
   the products wrote them; keys outside the document and after the query are not touched. */

#include <string.h>

#include "dropout.h"
#include "gemm.h"
#include "operator.h"
#include "rows.h"
#include "scratch.h"
#include "thread_pool.h"
#include "vectors.h"

struct attention {
    const float *q, *k, *v, *out, *dout; /* (batch · seq, heads · dim) */
    const int32_t *positions;            /* (batch, seq) */
    struct dropout dropout;              /* of the probabilities; the columns are the keys' positions in the record */
    const int32_t *head_keys;            /* (heads,), added to the rows' keys */
    float *y, *logsum, *dq, *dk, *dv;    /* logsum (batch · heads, seq): log Σ exp of each query's scores */
    int64_t seq, heads, dim, hidden;
    float scale;
};

enum { QUERIES = 96 }; /* per tile: their scores stay in the cache */

struct window { /* some queries, and the keys that any of them may see */
    int64_t query, queries, key, keys;
};

/* The first key that query i may see: clamped to 0 … i, whatever the position says. */
INLINE int64_t document_start(const int32_t *positions, int64_t i) {
    int64_t start = i - positions[i];
    return start < 0 ? 0 : smaller(start, i);
}

INLINE struct window window_from(const int32_t *positions, int64_t query, int64_t seq) {
    struct window w = {query, smaller(QUERIES, seq - query), query, 0};
    for (int64_t i = query; i < query + w.queries; i++)
        w.key = smaller(w.key, document_start(positions, i));
    w.keys = query + w.queries - w.key;
    return w;
}

INLINE void bounds(const struct window *w, const int32_t *positions, int64_t i, int64_t *first, int64_t *last) {
    *first = document_start(positions, w->query + i) - w->key, *last = w->query + i - w->key + 1;
}

struct keys { /* dropout keys of a record and head; rows is NULL without dropout */
    const int32_t *rows, *columns;
    int32_t head, threshold;
    float scale;
};

INLINE struct keys keys_of(const struct attention *a, const struct window *w, int64_t record, int64_t head) {
    const struct dropout *d = &a->dropout;
    if (!d->rows)
        return (struct keys){0};
    return (struct keys){d->rows + record * a->seq + w->query, d->columns + w->key, a->head_keys[head], d->threshold,
                         d->scale};
}

INLINE uint32_t row_key(const struct keys *k, int64_t i) { return (uint32_t)k->rows[i] + (uint32_t)k->head; }

CLONES static void drop(const struct keys *keys, int64_t i, int64_t first, int64_t last, float *row) {
    for (int64_t j = first; j < last; j++)
        row[j] *= keeping(row_key(keys, i), keys->columns[j], keys->threshold, keys->scale);
}

/* products of queries and keys → probabilities after dropout, in place; logsum of each row */
CLONES static void softmax_forward(const struct window *w, const int32_t *positions, const struct keys *keys,
                                   float scale, float *scores, float *logsum) {
    for (int64_t i = 0; i < w->queries; i++) {
        int64_t first, last;
        bounds(w, positions, i, &first, &last);
        struct softmax made = softmax_between(scores + i * w->keys, first, last, w->keys, scale);
        if (keys->rows)
            drop(keys, i, first, last, scores + i * w->keys);
        logsum[w->query + i] = made.highest * scale + logf(made.sum);
    }
}

/* products of queries and keys → probabilities p, and dp → scale · p · (dp − Σ dout · out), both in place; with
   dropout p · keep and scale · p · (dp · keep − Σ …) */
CLONES static void softmax_backward(const struct attention *a, const struct window *w, const int32_t *positions,
                                    const struct keys *keys, const float *out, const float *dout, const float *logsum,
                                    float *scores, float *dp) {
    for (int64_t i = 0; i < w->queries; i++) {
        float *row = scores + i * w->keys, *slope = dp + i * w->keys, along = 0, whole = logsum[w->query + i];
        const float *o = out + (w->query + i) * a->hidden, *d = dout + (w->query + i) * a->hidden;
        int64_t first, last;
        bounds(w, positions, i, &first, &last);
#pragma omp simd reduction(+ : along)
        for (int64_t j = 0; j < a->dim; j++)
            along += o[j] * d[j];
        memset(row, 0, first * sizeof *row);
        memset(slope, 0, first * sizeof *row);
        if (keys->rows)
            for (int64_t j = first; j < last; j++) {
                float kept = keeping(row_key(keys, i), keys->columns[j], keys->threshold, keys->scale);
                float probability = quick_exp(row[j] * a->scale - whole);
                row[j] = probability * kept;
                slope[j] = a->scale * probability * (slope[j] * kept - along);
            }
        else
            for (int64_t j = first; j < last; j++) {
                row[j] = quick_exp(row[j] * a->scale - whole);
                slope[j] = a->scale * row[j] * (slope[j] - along);
            }
        memset(row + last, 0, (w->keys - last) * sizeof *row);
        memset(slope + last, 0, (w->keys - last) * sizeof *row);
    }
}

static void add_product(struct product p) {
    p.add = 1;
    small_gemm(p);
}

/* One head of one record. */
static void attend(void *context, int64_t part, int64_t end) {
    const struct attention *a = context;
    int64_t record = part / a->heads, head = part % a->heads, h = a->hidden;
    int64_t start = record * a->seq * h + head * a->dim;
    const int32_t *positions = a->positions + record * a->seq;
    float *scores = thread_scratch(OF_ATTENTION, QUERIES * a->seq);
    for (int64_t query = 0; query < a->seq; query += QUERIES) {
        struct window w = window_from(positions, query, a->seq);
        const float *q = a->q + start + query * h, *k = a->k + start + w.key * h, *v = a->v + start + w.key * h;
        small_gemm(product(0, 1, w.queries, w.keys, a->dim, q, h, k, h, scores, w.keys));
        struct keys keys = keys_of(a, &w, record, head);
        softmax_forward(&w, positions, &keys, a->scale, scores, a->logsum + part * a->seq);
        small_gemm(product(0, 0, w.queries, a->dim, w.keys, scores, w.keys, v, h, a->y + start + query * h, h));
    }
}

static void attend_backward(void *context, int64_t part, int64_t end) {
    const struct attention *a = context;
    int64_t record = part / a->heads, head = part % a->heads, h = a->hidden;
    int64_t start = record * a->seq * h + head * a->dim;
    const int32_t *positions = a->positions + record * a->seq;
    float *scores = thread_scratch(OF_ATTENTION, 2 * QUERIES * a->seq), *dp = scores + QUERIES * a->seq;
    for (int64_t i = 0; i < a->seq; i++) {
        memset(a->dk + start + i * h, 0, a->dim * sizeof(float));
        memset(a->dv + start + i * h, 0, a->dim * sizeof(float));
    }
    for (int64_t query = 0; query < a->seq; query += QUERIES) {
        struct window w = window_from(positions, query, a->seq);
        int64_t rows = start + query * h, seen = start + w.key * h, m = w.queries, n = w.keys, d = a->dim;
        small_gemm(product(0, 1, m, n, d, a->q + rows, h, a->k + seen, h, scores, n));
        small_gemm(product(0, 1, m, n, d, a->dout + rows, h, a->v + seen, h, dp, n));
        struct keys keys = keys_of(a, &w, record, head);
        softmax_backward(a, &w, positions, &keys, a->out + start, a->dout + start, a->logsum + part * a->seq, scores,
                         dp);
        add_product(product(1, 0, n, d, m, scores, n, a->dout + rows, h, a->dv + seen, h));
        small_gemm(product(0, 0, m, d, n, dp, n, a->k + seen, h, a->dq + rows, h));
        add_product(product(1, 0, n, d, m, dp, n, a->q + rows, h, a->dk + seen, h));
    }
}

static struct attention shaped(int64_t hidden, const int64_t *positions, const int64_t *logsum) {
    int64_t heads = logsum[0] / positions[0], dim = hidden / heads;
    return (struct attention){.seq = positions[1], .heads = heads, .dim = dim, .hidden = hidden,
                              .scale = 1.0f / sqrtf((float)dim)};
}

/* Five further inputs switch dropout on: the keys of the rows, columns and heads, threshold, scale. */
static void with_dropout(struct attention *a, void **arrays, int first) {
    a->dropout = (struct dropout){INTEGERS(first), INTEGERS(first + 1), *INTEGERS(first + 3), *IN(first + 4)};
    a->head_keys = INTEGERS(first + 2);
}

/* q, k, v (batch · seq, heads · dim), positions (batch, seq) → mixed values like q, logsum (batch · heads, seq) */
OPERATOR(attention) {
    int inputs = count - 2;
    struct attention a = shaped(shapes[0][1], shapes[3], shapes[inputs + 1]);
    a.q = IN(0), a.k = IN(1), a.v = IN(2), a.positions = INTEGERS(3), a.y = OUT(inputs), a.logsum = OUT(inputs + 1);
    if (inputs > 4)
        with_dropout(&a, arrays, 4);
    parallel_for(attend, &a, shapes[inputs + 1][0], 1);
    return 0;
}

/* q, k, v, positions, mixed, logsum, dmixed → dq, dk, dv */
OPERATOR(attention_backward) {
    int inputs = count - 3;
    struct attention a = shaped(shapes[0][1], shapes[3], shapes[5]);
    a.q = IN(0), a.k = IN(1), a.v = IN(2), a.positions = INTEGERS(3), a.out = IN(4), a.logsum = OUT(5), a.dout = IN(6);
    a.dq = OUT(inputs), a.dk = OUT(inputs + 1), a.dv = OUT(inputs + 2);
    if (inputs > 7)
        with_dropout(&a, arrays, 7);
    parallel_for(attend_backward, &a, shapes[5][0], 1);
    return 0;
}
