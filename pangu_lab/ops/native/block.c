/* The block: norm, attention, norm, feed-forward, each half with its residual. The only one in C, for all rows: one
   new token each of some sequences, or all tokens of prompts. */

#include <string.h>

#include "network.h"
#include "rows.h"

static void norm(const struct pass *p, const float *gamma, const float *beta) {
    layer_norm_rows(p->x, gamma, beta, (float)p->network->epsilon, p->rows, p->network->hidden, p->normed);
}

/* From here on x holds only the rows asked for; → their queries, each the learned query of its position. */
static float *narrow(struct pass *p, const int32_t *asked, int64_t rows) {
    int64_t hidden = p->network->hidden, size = hidden * sizeof(float);
    float *x = p->x, *queries = p->sums; /* sums and normed are free here */
    for (int64_t i = 0; i < rows; i++) {
        memcpy(p->normed + i * hidden, x + asked[i] * hidden, size);
        memcpy(queries + i * hidden, p->network->queries + p->positions[asked[i]] * hidden, size);
    }
    p->x = p->normed, p->normed = x, p->token = asked, p->rows = rows;
    return queries;
}

void block(struct pass *p, const struct layer *layer, const int32_t *asked, int64_t rows) {
    int64_t hidden = p->network->hidden, stride = layer->qkv.out, query_stride = asked ? hidden : stride;
    norm(p, layer->gamma1, layer->beta1);
    project(p, &layer->qkv, p->normed, p->qkv, NONE);
    float *keys = p->qkv + stride - 2 * hidden, *queries = asked ? narrow(p, asked, rows) : p->qkv;
    /* A position scheme that acts on queries and keys, such as rotary positions, is one function called here, for
       both kinds of layer: over ``queries`` of p->rows rows, row i at p->positions[token_of(p, i)], and over ``keys``
       of p->batch · p->n tokens, token i at p->positions[i]. The cache then holds keys that are already rotated. */
    keep(p, layer, keys, stride);
    attend_to_cache(p, layer, queries, query_stride);
    project(p, &layer->out, p->mixed, p->x, RESIDUAL);
    norm(p, layer->gamma2, layer->beta2);
    project(p, &layer->up, p->normed, p->inner, (int)p->network->activation);
    project(p, &layer->down, p->inner, p->x, RESIDUAL);
}
