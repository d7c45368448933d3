/* Attention over the key-value cache, in the cache's own layout: of decode steps and of prompts.

   Rows with keys of their own (a decode step's, and those kept by the query layer) are computed one by one, over the
   valid slots only, in place. In a prompt many queries read the same keys: the keys are gathered, and 96 queries at a
   time are a matrix product; what lies after a token is multiplied with 0, so its result does not depend on the
   tokens fed together with it. */

#include "gemm.h"
#include "network.h"
#include "rows.h"
#include "scratch.h"
#include "thread_pool.h"
#include "vectors.h"

enum {
    TOKENS = 16,  /* per work item, when keys and values are stored */
    QUERIES = 96, /* of one head, per work item */
    KEYS = 8,     /* multiplied with a query at once */
};

struct cache { /* of one layer, and the new rows */
    const struct pass *pass;
    const struct layer *layer;
    const float *from; /* new keys and values, or queries */
    int64_t stride;    /* between tokens or rows there */
};

static void keep_tokens(void *context, int64_t first, int64_t last) {
    const struct cache *c = context;
    const struct network *n = c->pass->network;
    int64_t dim = n->hidden / n->heads;
    for (int64_t token = first; token < last; token++)
        for (int64_t head = 0; head < n->heads; head++) {
            int64_t slot = (head * n->slots + c->pass->write[token]) * dim;
            const float *key = c->from + token * c->stride + head * dim;
            memcpy(c->layer->keys + slot, key, dim * sizeof *key);
            memcpy(c->layer->values + slot, key + n->hidden, dim * sizeof *key);
        }
}

void keep(const struct pass *p, const struct layer *layer, const float *keys, int64_t stride) {
    parallel_for(keep_tokens, &(struct cache){p, layer, keys, stride}, p->batch * p->n, TOKENS);
}

/* scores (length,) = query · the keys in the slots read[0 … length). */
CLONES static void score_keys(const float *query, const float *keys, const float *values, const int32_t *read,
                              int64_t length, int64_t dim, float *scores) {
    for (int64_t t = 0; t < length; t += KEYS) {
        const float *key[KEYS];
        for (int k = 0; k < KEYS; k++) /* past the end, the last one again */
            key[k] = keys + read[smaller(t + k, length - 1)] * dim;
        /* prefetch the next keys, and values, which are needed as soon as the scores are there */
        for (int k = 0; k < KEYS; k++)
            for (int64_t line = 0; line < dim; line += 16) {
                __builtin_prefetch(keys + read[smaller(t + k + 2 * KEYS, length - 1)] * dim + line, 0, 2);
                __builtin_prefetch(values + read[smaller(t + k, length - 1)] * dim + line, 0, 2);
            }
        vec running[KEYS] = {{0}};
        int64_t i = 0;
        for (; i + LANES <= dim; i += LANES) {
            vec value = load(query + i);
            for (int k = 0; k < KEYS; k++)
                running[k] += load(key[k] + i) * value;
        }
        for (int k = 0; k < KEYS && t + k < length; k++) {
            scores[t + k] = total(running[k]);
            for (int64_t j = i; j < dim; j++)
                scores[t + k] += key[k][j] * query[j];
        }
    }
}

/* mixed (vectors · LANES,) = the weighted sum of the values. */
INLINE void mix(const float *shares, const float *values, const int32_t *read, int64_t length, int64_t dim, int vectors,
                float *mixed) {
    vec running[8] = {{0}};
    for (int64_t t = 0; t < length; t++)
        for (int k = 0; k < vectors; k++)
            running[k] += shares[t] * load(values + read[t] * dim + k * LANES);
    for (int k = 0; k < vectors; k++)
        memcpy(mixed + k * LANES, &running[k], sizeof running[k]);
}

CLONES static void mix_values(const float *shares, const float *values, const int32_t *read, int64_t length,
                              int64_t dim, float *mixed) {
    int64_t first = 0;
    for (; first + 8 * LANES <= dim; first += 8 * LANES)
        mix(shares, values + first, read, length, dim, 8, mixed + first);
    for (; first + 4 * LANES <= dim; first += 4 * LANES)
        mix(shares, values + first, read, length, dim, 4, mixed + first);
    for (; first + LANES <= dim; first += LANES)
        mix(shares, values + first, read, length, dim, 1, mixed + first);
    for (; first < dim; first++) {
        mixed[first] = 0;
        for (int64_t t = 0; t < length; t++)
            mixed[first] += shares[t] * values[read[t] * dim + first];
    }
}

/* One head of one row, over the slots of its sequence. */
static void attend_row(void *context, int64_t part, int64_t end) {
    const struct cache *c = context;
    const struct pass *p = c->pass;
    int64_t heads = p->network->heads, hidden = p->network->hidden, dim = hidden / heads, row = part / heads,
        head = part % heads;
    int64_t token = token_of(p, row), length = p->positions[token] + 1, first = head * p->network->slots * dim;
    const int32_t *read = p->read + token / p->n * p->span;
    const float *keys = c->layer->keys + first, *values = c->layer->values + first;
    float *scores = thread_scratch(OF_ATTENTION, p->span);
    score_keys(c->from + row * c->stride + head * dim, keys, values, read, length, dim, scores);
    softmax(scores, length, 1.0f, 1.0f);
    mix_values(scores, values, read, length, dim, p->mixed + row * hidden + head * dim);
}

/* to (count, dim) = the rows of the cache, or of the queries, at these slots. */
static void gather(const float *from, const int32_t *read, int64_t count, int64_t dim, float *to) {
    for (int64_t t = 0; t < count; t++)
        memcpy(to + t * dim, from + read[t] * dim, dim * sizeof *to);
}

/* Consecutive queries of one head in one sequence, at most QUERIES. */
static void attend_queries(void *context, int64_t part, int64_t end) {
    const struct cache *c = context;
    const struct pass *p = c->pass;
    const struct network *n = p->network;
    int64_t blocks = (p->n + QUERIES - 1) / QUERIES, head = part % n->heads, sequence = part / n->heads / blocks;
    int64_t start = part / n->heads % blocks * QUERIES, count = smaller(QUERIES, p->n - start);
    int64_t row = sequence * p->n + start, dim = n->hidden / n->heads, slots = head * n->slots * dim, keys = 0;
    const int32_t *last = p->positions + row, *read = p->read + sequence * p->span;
    for (int64_t i = 0; i < count; i++)
        keys = larger(keys, last[i] + 1);
    float *scores = thread_scratch(OF_ATTENTION, QUERIES * keys + 2 * keys * dim), *key = scores + QUERIES * keys;
    float *value = key + keys * dim;
    gather(c->layer->keys + slots, read, keys, dim, key);
    gather(c->layer->values + slots, read, keys, dim, value);
    small_gemm(product(0, 1, count, keys, dim, c->from + row * c->stride + head * dim, c->stride, key, dim, scores,
                       keys));
    for (int64_t i = 0; i < count; i++)
        softmax_between(scores + i * keys, 0, last[i] + 1, keys, 1.0f);
    small_gemm(product(0, 0, count, dim, keys, scores, keys, value, dim, p->mixed + row * n->hidden + head * dim,
                       n->hidden));
}

void attend_to_cache(const struct pass *p, const struct layer *layer, const float *queries, int64_t stride) {
    struct cache c = {p, layer, queries, stride};
    if (p->n == 1 || p->token)
        parallel_for(attend_row, &c, p->rows * p->network->heads, 1);
    else
        parallel_for(attend_queries, &c, p->batch * ((p->n + QUERIES - 1) / QUERIES) * p->network->heads, 1);
}
