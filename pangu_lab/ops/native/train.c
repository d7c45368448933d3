/* The operations of a training step, forward and backward, as MindSpore calls custom operators of the kind "aot":

       int name(int count, void **arrays, int *dimensions, int64_t **shapes, const char **types, void *, void *)

   ``arrays`` are the inputs and then the outputs, all of them fp32 but for positions, labels and keys (int32).

   Products are those of multiply.h. What lies between them is done in one pass over memory, with what it needs computed
   again rather than kept. Every sum is added in an order that does not depend on which thread does what, so a step repeated gives the same bits.

   NaN and infinity go through as in IEEE arithmetic; denormals are kept. */

#include "multiply.h"
#include "rows.h"

#define KERNEL(name) \
    int name(int count, void **arrays, int *dimensions, int64_t **shapes, const char **types, void *stream, void *extra)
#define UNUSED (void)count, (void)dimensions, (void)types, (void)stream, (void)extra, (void)shapes
#define IN(i) ((const float *)arrays[i])
#define INTEGERS(i) ((const int32_t *)arrays[i])
#define OUT(i) ((float *)arrays[i])

/* Before the first kernel; gives the bits of the vectors that products are made with, at most those that are asked for. */
int set_up(int64_t threads, int bits) {
    pool_grow(threads);
    return choose_vectors(bits);
}

/* ---------------------------------------------------------------------------------------------------- products */

struct columns {
    const float *x;
    float *sums;
    int64_t rows, width;
};

enum { STRIPE = 64 };

CLONES static void sum_stripe(const struct columns *c, int64_t first, int64_t count) {
    float sums[STRIPE] = {0};
    for (int64_t row = 0; row < c->rows; row++)
        for (int64_t i = 0; i < count; i++)
            sums[i] += c->x[row * c->width + first + i];
    memcpy(c->sums + first, sums, count * sizeof *sums);
}

static void part_of_sums(void *context, int64_t part) {
    const struct columns *c = context;
    sum_stripe(c, part * STRIPE, smaller(STRIPE, c->width - part * STRIPE));
}

static void sum_of_rows(const float *x, float *sums, int64_t rows, int64_t width) {
    pool_run(part_of_sums, &(struct columns){x, sums, rows, width}, (width + STRIPE - 1) / STRIPE);
}

static int linear(int transposed, int biased, void **arrays, int64_t **shapes) {
    int64_t rows = shapes[0][0], in = shapes[0][1], out = shapes[1][transposed ? 0 : 1];
    struct product p = product(0, transposed, rows, out, in, IN(0), in, IN(1), transposed ? in : out, OUT(2 + biased), out);
    p.bias = biased ? IN(2) : NULL;
    whole_product(p);
    return 0;
}

static int linear_backward(int transposed, int biased, void **arrays, int64_t **shapes) {
    int64_t rows = shapes[0][0], in = shapes[0][1], out = shapes[2][1];
    const float *x = IN(0), *weight = IN(1), *dy = IN(2);
    whole_product(product(0, !transposed, rows, in, out, dy, out, weight, transposed ? in : out, OUT(3), in));
    if (transposed)
        whole_product(product(1, 0, out, in, rows, dy, out, x, in, OUT(4), in));
    else
        whole_product(product(1, 0, in, out, rows, x, in, dy, out, OUT(4), out));
    if (biased)
        sum_of_rows(dy, OUT(5), rows, out);
    return 0;
}

/* x (rows, in), weight (in, out) or transposed (out, in), bias (out,) → (rows, out) */
KERNEL(linear_plain) { UNUSED; return linear(0, count == 4, arrays, shapes); }
KERNEL(linear_transposed) { UNUSED; return linear(1, count == 4, arrays, shapes); }
/* x, weight, dy → dx, dweight, and dbias if there is room for it */
KERNEL(linear_plain_backward) { UNUSED; return linear_backward(0, count == 6, arrays, shapes); }
KERNEL(linear_transposed_backward) { UNUSED; return linear_backward(1, count == 6, arrays, shapes); }

/* --------------------------------------------------------------------------------------------------- activations */

struct elements {
    const float *x, *dy;
    float *y;
    int64_t count;
    int kind;
};

enum { PIECE = 16384 };

static void part_of_elements(void *context, int64_t part) {
    const struct elements *e = context;
    int64_t first = part * PIECE;
    activate(e->x + first, e->dy ? e->dy + first : NULL, e->y + first, smaller(PIECE, e->count - first), e->kind);
}

static void activated(int kind, const float *x, const float *dy, float *y, int64_t count) {
    pool_run(part_of_elements, &(struct elements){x, dy, y, count, kind}, (count + PIECE - 1) / PIECE);
}

static int activation(int kind, int backward, void **arrays, int *dimensions, int64_t **shapes) {
    int64_t all = 1;
    for (int i = 0; i < dimensions[0]; i++)
        all *= shapes[0][i];
    activated(kind, IN(0), backward ? IN(1) : NULL, OUT(1 + backward), all);
    return 0;
}

/* x → y, and x, dy → dx, of any shape */
KERNEL(gelu) { UNUSED; return activation(TANH_GELU, 0, arrays, dimensions, shapes); }
KERNEL(gelu_backward) { UNUSED; return activation(TANH_GELU, 1, arrays, dimensions, shapes); }
KERNEL(gelu_erf) { UNUSED; return activation(ERF_GELU, 0, arrays, dimensions, shapes); }
KERNEL(gelu_erf_backward) { UNUSED; return activation(ERF_GELU, 1, arrays, dimensions, shapes); }
KERNEL(fast_gelu) { UNUSED; return activation(FAST_GELU, 0, arrays, dimensions, shapes); }
KERNEL(fast_gelu_backward) { UNUSED; return activation(FAST_GELU, 1, arrays, dimensions, shapes); }

/* A product of activated rows. What the activation gave is not kept for the backward pass, which makes it again: of what a layer
   keeps, a quarter less. */
static int linear_after(int kind, int biased, void **arrays, int64_t **shapes) {
    int64_t rows = shapes[0][0], in = shapes[0][1], out = shapes[1][1];
    float *inner = aligned(rows * in);
    if (!inner)
        return 1;
    activated(kind, IN(0), NULL, inner, rows * in);
    struct product p = product(0, 0, rows, out, in, inner, in, IN(1), out, OUT(2 + biased), out);
    p.bias = biased ? IN(2) : NULL;
    whole_product(p);
    free(inner);
    return 0;
}

static int linear_after_backward(int kind, int biased, void **arrays, int64_t **shapes) {
    int64_t rows = shapes[0][0], in = shapes[0][1], out = shapes[2][1];
    const float *x = IN(0), *weight = IN(1), *dy = IN(2);
    float *inner = aligned(rows * in);
    if (!inner)
        return 1;
    activated(kind, x, NULL, inner, rows * in);
    whole_product(product(1, 0, in, out, rows, inner, in, dy, out, OUT(4), out));
    whole_product(product(0, 1, rows, in, out, dy, out, weight, out, inner, in));
    activated(kind, x, inner, OUT(3), rows * in);
    if (biased)
        sum_of_rows(dy, OUT(5), rows, out);
    free(inner);
    return 0;
}

/* x (rows, in) before the activation, weight (in, out), bias (out,) → (rows, out); and x, weight, dy → as above */
KERNEL(linear_after_gelu) { UNUSED; return linear_after(TANH_GELU, count == 4, arrays, shapes); }
KERNEL(linear_after_gelu_backward) { UNUSED; return linear_after_backward(TANH_GELU, count == 6, arrays, shapes); }
KERNEL(linear_after_gelu_erf) { UNUSED; return linear_after(ERF_GELU, count == 4, arrays, shapes); }
KERNEL(linear_after_gelu_erf_backward) { UNUSED; return linear_after_backward(ERF_GELU, count == 6, arrays, shapes); }
KERNEL(linear_after_fast_gelu) { UNUSED; return linear_after(FAST_GELU, count == 4, arrays, shapes); }
KERNEL(linear_after_fast_gelu_backward) { UNUSED; return linear_after_backward(FAST_GELU, count == 6, arrays, shapes); }

/* ----------------------------------------------------------------------------------------------------- LayerNorm */

struct norm {
    const float *x, *gamma, *beta, *dy;
    float *y, *partial; /* partial (parts, 2, width): what each part adds to dgamma and dbeta */
    float epsilon;
    int64_t rows, width, parts;
};

CLONES static void norm_row(const struct norm *n, int64_t row) {
    norm_to(n->x + row * n->width, n->gamma, n->beta, n->epsilon, n->width, n->y + row * n->width);
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

static void part_of_norm(void *context, int64_t part) {
    const struct norm *n = context;
    int64_t last = (part + 1) * n->rows / n->parts;
    float *dgamma = n->partial ? n->partial + part * 2 * n->width : NULL;
    if (dgamma)
        memset(dgamma, 0, 2 * n->width * sizeof *dgamma);
    for (int64_t row = part * n->rows / n->parts; row < last; row++)
        dgamma ? norm_row_backward(n, row, dgamma, dgamma + n->width) : norm_row(n, row);
}

enum { NORM_PARTS = 16 };

/* x (rows, width), gamma, beta (width,), epsilon (1,) → (rows, width) */
KERNEL(layer_norm) {
    UNUSED;
    struct norm n = {IN(0), IN(1), IN(2), NULL, OUT(4), NULL, *IN(3), shapes[0][0], shapes[0][1], NORM_PARTS};
    pool_run(part_of_norm, &n, n.parts);
    return 0;
}

/* x, gamma, dy, epsilon → dx, dgamma, dbeta */
KERNEL(layer_norm_backward) {
    UNUSED;
    int64_t width = shapes[0][1];
    struct norm n = {IN(0), IN(1), NULL, IN(2), OUT(4), aligned(NORM_PARTS * 2 * width),
                     *IN(3), shapes[0][0], width, NORM_PARTS};
    if (!n.partial)
        return 1;
    pool_run(part_of_norm, &n, n.parts);
    for (int which = 0; which < 2; which++) {
        float *sums = OUT(5 + which);
        memcpy(sums, n.partial + which * width, width * sizeof *sums);
        for (int64_t part = 1; part < n.parts; part++)
            for (int64_t i = 0; i < width; i++)
                sums[i] += n.partial[(2 * part + which) * width + i];
    }
    free(n.partial);
    return 0;
}

/* ------------------------------------------------------------------------------------------------------- dropout */

struct dropout { /* ops/dropout.py says what the numbers are */
    const int32_t *rows, *columns; /* keys; no rows: nothing is dropped */
    int32_t threshold;
    float scale; /* of what is kept */
};

/* What element (row, column) is multiplied with: 0 or the scale. */
INLINE float keeping(uint32_t row, uint32_t column, int32_t threshold, float scale) {
    uint32_t value = (row ^ column) * 0x7FEB352Du;
    value = (value ^ value >> 16) * 0x846CA68Bu;
    return (int32_t)(value ^ value >> 16) >= threshold ? scale : 0.0f;
}

struct dropped {
    const float *x;
    float *y;
    struct dropout dropout;
    int64_t rows, width;
};

enum { DROPPED_ROWS = 32 };

CLONES static void drop_rows(const struct dropped *d, int64_t first, int64_t last) {
    const struct dropout *o = &d->dropout;
    for (int64_t row = first; row < last; row++) {
        const float *x = d->x + row * d->width;
        float *y = d->y + row * d->width;
        uint32_t key = o->rows[row];
        for (int64_t i = 0; i < d->width; i++)
            y[i] = x[i] * keeping(key, o->columns[i], o->threshold, o->scale);
    }
}

static void part_of_dropped(void *context, int64_t part) {
    const struct dropped *d = context;
    drop_rows(d, part * DROPPED_ROWS, smaller((part + 1) * DROPPED_ROWS, d->rows));
}

/* x (rows, width), keys of the rows (rows, 1), of the columns (1, width), threshold, scale (1,) → (rows, width). It is its own
   backward pass. */
KERNEL(dropout) {
    UNUSED;
    struct dropped d = {IN(0), OUT(5), {INTEGERS(1), INTEGERS(2), *INTEGERS(3), *IN(4)}, shapes[0][0], shapes[0][1]};
    pool_run(part_of_dropped, &d, (d.rows + DROPPED_ROWS - 1) / DROPPED_ROWS);
    return 0;
}

/* ----------------------------------------------------------------------------------------------------- attention */

struct attention {
    const float *q, *k, *v, *out, *dout; /* (batch · seq, heads · dim) */
    const int32_t *positions;            /* (batch, seq) */
    struct dropout dropout;              /* of the probabilities; the columns are the keys' places in the record */
    const int32_t *head_keys;            /* (heads,), added to the rows' keys */
    float *y, *logsum, *dq, *dk, *dv;    /* logsum (batch · heads, seq): log Σ exp of each query's scores */
    int64_t seq, heads, dim, hidden;
    float scale;
};

enum { QUERIES = 96 }; /* taken at once: their scores stay in the cache */

struct window { /* some queries, and the keys that any of them may see */
    int64_t query, queries, key, keys;
};

/* The first key that query i may see: from 0 to i, whatever the position says. */
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

struct keys { /* of a record and head, for dropout; no rows: none */
    const int32_t *rows, *columns;
    int32_t head, threshold;
    float scale;
};

INLINE struct keys keys_of(const struct attention *a, const struct window *w, int64_t record, int64_t head) {
    const struct dropout *d = &a->dropout;
    if (!d->rows)
        return (struct keys){0};
    return (struct keys){d->rows + record * a->seq + w->query, d->columns + w->key, a->head_keys[head], d->threshold, d->scale};
}

INLINE uint32_t row_key(const struct keys *k, int64_t i) { return (uint32_t)k->rows[i] + (uint32_t)k->head; }

/* products of queries and keys → probabilities, in place, those that dropout keeps; logsum of each row */
CLONES static void softmax(const struct window *w, const int32_t *positions, const struct keys *keys, float scale,
                           float *scores, float *logsum) {
    for (int64_t i = 0; i < w->queries; i++) {
        float *row = scores + i * w->keys, highest = -INFINITY, sum = 0;
        int64_t first, last;
        bounds(w, positions, i, &first, &last);
#pragma omp simd reduction(max : highest)
        for (int64_t j = first; j < last; j++)
            highest = row[j] > highest ? row[j] : highest;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = first; j < last; j++) {
            row[j] = quick_exp((row[j] - highest) * scale);
            sum += row[j];
        }
        float share = 1.0f / sum;
        for (int64_t j = first; j < last; j++)
            row[j] *= share;
        for (int64_t j = first; keys->rows && j < last; j++)
            row[j] *= keeping(row_key(keys, i), keys->columns[j], keys->threshold, keys->scale);
        memset(row, 0, first * sizeof *row);
        memset(row + last, 0, (w->keys - last) * sizeof *row);
        logsum[w->query + i] = highest * scale + logf(sum);
    }
}

/* products of queries and keys → probabilities p, and dp → scale · p · (dp − Σ dout · out), both in place; with dropout p · keep
   and scale · p · (dp · keep − Σ …) */
CLONES static void softmax_backward(const struct attention *a, const struct window *w, const int32_t *positions,
                                    const struct keys *keys, const float *out, const float *dout, const float *logsum, float *scores, float *dp) {
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
    multiply(p);
}

static void part_of_attention(void *context, int64_t part) {
    const struct attention *a = context;
    int64_t record = part / a->heads, head = part % a->heads, h = a->hidden;
    int64_t start = record * a->seq * h + head * a->dim;
    const int32_t *positions = a->positions + record * a->seq;
    float *scores = room(2, QUERIES * a->seq);
    for (int64_t query = 0; query < a->seq; query += QUERIES) {
        struct window w = window_from(positions, query, a->seq);
        const float *q = a->q + start + query * h, *k = a->k + start + w.key * h, *v = a->v + start + w.key * h;
        multiply(product(0, 1, w.queries, w.keys, a->dim, q, h, k, h, scores, w.keys));
        struct keys keys = keys_of(a, &w, record, head);
        softmax(&w, positions, &keys, a->scale, scores, a->logsum + part * a->seq);
        multiply(product(0, 0, w.queries, a->dim, w.keys, scores, w.keys, v, h, a->y + start + query * h, h));
    }
}

static void part_of_attention_backward(void *context, int64_t part) {
    const struct attention *a = context;
    int64_t record = part / a->heads, head = part % a->heads, h = a->hidden;
    int64_t start = record * a->seq * h + head * a->dim;
    const int32_t *positions = a->positions + record * a->seq;
    float *scores = room(2, 2 * QUERIES * a->seq), *dp = scores + QUERIES * a->seq;
    for (int64_t i = 0; i < a->seq; i++) {
        memset(a->dk + start + i * h, 0, a->dim * sizeof(float));
        memset(a->dv + start + i * h, 0, a->dim * sizeof(float));
    }
    for (int64_t query = 0; query < a->seq; query += QUERIES) {
        struct window w = window_from(positions, query, a->seq);
        int64_t rows = start + query * h, seen = start + w.key * h, m = w.queries, n = w.keys, d = a->dim;
        multiply(product(0, 1, m, n, d, a->q + rows, h, a->k + seen, h, scores, n));
        multiply(product(0, 1, m, n, d, a->dout + rows, h, a->v + seen, h, dp, n));
        struct keys keys = keys_of(a, &w, record, head);
        softmax_backward(a, &w, positions, &keys, a->out + start, a->dout + start, a->logsum + part * a->seq, scores, dp);
        add_product(product(1, 0, n, d, m, scores, n, a->dout + rows, h, a->dv + seen, h));
        multiply(product(0, 0, m, d, n, dp, n, a->k + seen, h, a->dq + rows, h));
        add_product(product(1, 0, n, d, m, dp, n, a->q + rows, h, a->dk + seen, h));
    }
}

static struct attention shaped(int64_t hidden, const int64_t *positions, const int64_t *logsum) {
    int64_t heads = logsum[0] / positions[0], dim = hidden / heads;
    return (struct attention){.seq = positions[1], .heads = heads, .dim = dim, .hidden = hidden,
                              .scale = 1.0f / sqrtf((float)dim)};
}

/* With five inputs more there is dropout: the keys of the rows, columns and heads, threshold, scale. */
static void with_dropout(struct attention *a, void **arrays, int first) {
    a->dropout = (struct dropout){INTEGERS(first), INTEGERS(first + 1), *INTEGERS(first + 3), *IN(first + 4)};
    a->head_keys = INTEGERS(first + 2);
}

/* q, k, v (batch · seq, heads · dim), positions (batch, seq) → mixed values alike, logsum (batch · heads, seq) */
KERNEL(attention) {
    UNUSED;
    int inputs = count - 2;
    struct attention a = shaped(shapes[0][1], shapes[3], shapes[inputs + 1]);
    a.q = IN(0), a.k = IN(1), a.v = IN(2), a.positions = INTEGERS(3), a.y = OUT(inputs), a.logsum = OUT(inputs + 1);
    if (inputs > 4)
        with_dropout(&a, arrays, 4);
    pool_run(part_of_attention, &a, shapes[inputs + 1][0]);
    return 0;
}

/* q, k, v, positions, mixed, logsum, dmixed → dq, dk, dv */
KERNEL(attention_backward) {
    UNUSED;
    int inputs = count - 3;
    struct attention a = shaped(shapes[0][1], shapes[3], shapes[5]);
    a.q = IN(0), a.k = IN(1), a.v = IN(2), a.positions = INTEGERS(3), a.out = IN(4), a.logsum = OUT(5), a.dout = IN(6);
    a.dq = OUT(inputs), a.dk = OUT(inputs + 1), a.dv = OUT(inputs + 2);
    if (inputs > 7)
        with_dropout(&a, arrays, 7);
    pool_run(part_of_attention_backward, &a, shapes[5][0]);
    return 0;
}

/* ------------------------------------------------------------------------------------------------- head and loss */

struct loss {
    float *logits; /* (rows, vocabulary): become the gradient of the logits */
    const int32_t *labels;
    const float *weights;
    float *losses; /* weight · −log p(label) of each row */
    int64_t vocabulary;
};

CLONES static void cross_entropy(const struct loss *l, int64_t row) {
    float *logits = l->logits + row * l->vocabulary, highest = -INFINITY, sum = 0;
    int64_t label = l->labels[row];
    int known = label >= 0 && label < l->vocabulary;
#pragma omp simd reduction(max : highest)
    for (int64_t i = 0; i < l->vocabulary; i++)
        highest = logits[i] > highest ? logits[i] : highest;
    float chosen = known ? logits[label] - highest : NAN;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < l->vocabulary; i++) {
        logits[i] = quick_exp(logits[i] - highest);
        sum += logits[i];
    }
    float share = l->weights[row] / sum;
    for (int64_t i = 0; i < l->vocabulary; i++)
        logits[i] *= share;
    if (known)
        logits[label] -= l->weights[row];
    l->losses[row] = l->weights[row] * (logf(sum) - chosen);
}

static void part_of_loss(void *context, int64_t part) { cross_entropy(context, part); }

enum { LOSS_ROWS = 576 }; /* whose logits exist at once */

static int head_loss(void **arrays, int64_t **shapes, int gradients) {
    int64_t rows = shapes[0][0], hidden = shapes[0][1], vocabulary = shapes[1][0];
    float *logits = aligned(smaller(LOSS_ROWS, rows) * (vocabulary + 1));
    float *losses = logits + smaller(LOSS_ROWS, rows) * vocabulary;
    double total = 0;
    if (!logits)
        return 1;
    for (int64_t first = 0; first < rows; first += LOSS_ROWS) {
        int64_t count = smaller(LOSS_ROWS, rows - first);
        const float *x = IN(0) + first * hidden, *table = IN(1);
        whole_product(product(0, 1, count, vocabulary, hidden, x, hidden, table, hidden, logits, vocabulary));
        struct loss l = {logits, INTEGERS(2) + first, IN(3) + first, losses, vocabulary};
        pool_run(part_of_loss, &l, count);
        for (int64_t row = 0; row < count; row++)
            total += losses[row];
        if (!gradients)
            continue;
        whole_product(product(0, 0, count, hidden, vocabulary, logits, vocabulary, table, hidden, OUT(5) + first * hidden,
                              hidden));
        struct product of_table = product(1, 0, vocabulary, hidden, count, logits, vocabulary, x, hidden, OUT(6), hidden);
        of_table.add = first > 0;
        whole_product(of_table);
    }
    *OUT(4) = (float)total;
    free(logits);
    return 0;
}

/* hidden (rows, hidden), table (vocabulary, hidden), labels, weights (rows,) → Σ weight · −log p(label), (1,); and with
   gradients: those of hidden and table. A label outside the vocabulary makes the loss NaN. */
KERNEL(head_loss_value) { UNUSED; return head_loss(arrays, shapes, 0); }
KERNEL(head_loss_gradients) { UNUSED; return head_loss(arrays, shapes, 1); }

/* ------------------------------------------------------------------------------------------------- tied embedding */

struct tied {
    const int32_t *ids;
    const float *rows, *of_head;
    float *sums;
    int64_t count, vocabulary, width;
};

enum { TABLE_ROWS = 64 }; /* of a part; they stay in the second-level cache until what was looked up is added */

static void part_of_tied(void *context, int64_t part) {
    const struct tied *t = context;
    int64_t first = part * TABLE_ROWS, rows = smaller(TABLE_ROWS, t->vocabulary - first), width = t->width;
    memcpy(t->sums + first * width, t->of_head + first * width, rows * width * sizeof(float));
    for (int64_t i = 0; i < t->count; i++) {
        int64_t row = t->ids[i] - first;
        if (row < 0 || row >= rows)
            continue;
        float *restrict sum = t->sums + (first + row) * width;
        const float *restrict x = t->rows + i * width;
        for (int64_t column = 0; column < width; column++)
            sum[column] += x[column];
    }
}

/* ids (rows,), gradients of the rows that were looked up for them (rows, hidden) and of the table as the head has it
   (vocabulary, hidden) → gradient of the table. What an id outside the vocabulary was given goes nowhere. */
KERNEL(tied_backward) {
    UNUSED;
    struct tied t = {INTEGERS(0), IN(1), IN(2), OUT(3), shapes[0][0], shapes[2][0], shapes[2][1]};
    pool_run(part_of_tied, &t, (t.vocabulary + TABLE_ROWS - 1) / TABLE_ROWS);
    return 0;
}

/* -------------------------------------------------------------------------------------------------------- update */

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

static void part_of_squares(void *context, int64_t part) {
    const struct update *u = context;
    int64_t first = part * PIECE;
    u->squares[part] = sum_of_squares(u->tensor->gradient + first, smaller(PIECE, u->tensor->size - first));
}

/* Σ x², or NaN without memory */
double squared_norm(const float *x, int64_t size) {
    int64_t parts = (size + PIECE - 1) / PIECE;
    struct tensor t = {.gradient = x, .size = size};
    struct update u = {.tensor = &t, .squares = malloc(parts * sizeof(double))};
    double total = 0;
    if (!u.squares)
        return NAN;
    pool_run(part_of_squares, &u, parts);
    for (int64_t part = 0; part < parts; part++)
        total += u.squares[part];
    free(u.squares);
    return total;
}

CLONES static void adamw(const struct update *u, int64_t start, int64_t count) {
    const struct tensor *t = u->tensor;
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

static void part_of_update(void *context, int64_t part) {
    const struct update *u = context;
    adamw(u, part * PIECE, smaller(PIECE, u->tensor->size - part * PIECE));
}

/* AdamW in place, bias correction already in ``rate`` and ``epsilon``. */
void update(const struct tensor *tensors, int64_t count, float factor, float rate, float keep, float beta1, float beta2,
            float epsilon) {
    for (int64_t i = 0; i < count; i++) {
        struct update u = {tensors + i, factor, rate, keep, beta1, beta2, epsilon, NULL};
        pool_run(part_of_update, &u, (tensors[i].size + PIECE - 1) / PIECE);
    }
}
