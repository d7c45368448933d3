/* The network over its key-value cache, and one call of it. The layers' order is in network.c, the block in block.c. */

#pragma once

#include <stddef.h>

#include "common.h"

/* How the weights of a matrix are stored; gemv.c says in which order. */
enum kind_of_weight { FLOATS, BYTES, HALVES, BRAIN_FLOATS }; /* fp32, int8, fp16, bf16 */

/* (out, in) weights. */
struct matrix {
    const void *weight;
    const float *scale;  /* (out,) of bytes, else NULL */
    const float *bias;   /* (out,) or NULL */
    const float *floats; /* the same weights in fp32, for prompts; NULL: they are widened as they are needed */
    int64_t in, out, kind;
};

struct layer {
    const float *gamma1, *beta1, *gamma2, *beta2;
    struct matrix qkv, out, up, down; /* in the query layer qkv holds only k and v */
    float *keys, *values;             /* the cache, (heads * slots, head_dim) */
};

struct network {
    int64_t layers, hidden, inner, heads, slots, vocabulary, activation;
    double epsilon;
    const float *positions, *queries, *gamma, *beta;
    struct matrix head; /* the words' vectors, which are looked up here too */
    const struct layer *layer;
};

/* One call: n new tokens each of some sequences. With n = 1 it is a decode step, else a prompt or a chunk of one. */
struct pass {
    const struct network *network;
    int64_t batch, n, span;
    const int32_t *ids, *positions, *write; /* (batch, n); write: the slots that new keys and values go to */
    const int32_t *read;                    /* (batch, span): each sequence's slots from its position 0 on */
    int64_t rows;                           /* active rows: all tokens, or those whose logits are asked for */
    const int32_t *token;                   /* which token each row is, or NULL: row i is token i */
    float *x, *normed, *qkv, *mixed, *inner, *sums, *transposed; /* scratch, (rows, …) */
};

INLINE int64_t token_of(const struct pass *p, int64_t row) { return p->token ? p->token[row] : row; }

/* block.c: x (rows, hidden) → x after the layer. With ``asked`` it is the query layer, whose queries are the learned
   ones of the positions, and which keeps only these tokens. */
void block(struct pass *p, const struct layer *layer, const int32_t *asked, int64_t rows);

/* projection.c: y (rows, out) = activation(x (rows, in) · weightᵀ + bias), or y += that; ``after`` says which. */
void project(const struct pass *p, const struct matrix *m, const float *x, float *y, int after);

/* cached_attention.c: stores the tokens' new keys, and ``hidden`` floats after each its new value, in the cache. */
void keep(const struct pass *p, const struct layer *layer, const float *keys, int64_t stride);

/* Every row's query over its sequence's slots up to its own position → mixed (rows, hidden). */
void attend_to_cache(const struct pass *p, const struct layer *layer, const float *queries, int64_t stride);

/* projection.c: y (rows, out) = x (rows, in) · weightᵀ + bias, for more rows than a decode step has. */
void multiply(const struct matrix *m, const float *x, float *y, int64_t rows);

/* gemv.c: a row of the weights in fp32 → to (in,). */
void widen(const struct matrix *m, int64_t row, float *to);

/* gemv.c: y (count, out) = activation(x (count, in) · weightᵀ + bias), or y += that; ``after`` says which. */
void gemv(const struct matrix *m, const float *x, float *y, int64_t count, int after);
