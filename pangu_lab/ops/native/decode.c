/* The network, over the cache of keys and values: new tokens in, logits out. Here one token each of a few sequences; prompt.h
   reads many at once.

   With one row a product reads every weight once and multiplies it once, so the step can be no quicker than memory
   hands over the weights. What is done here to come close to that: whole rows of weights are read by one thread, each of
   three streams in order; bias, activation and residual are applied to a result while it is in a register; attention looks at the valid
   positions alone, in the cache's own layout; nothing is copied.

   Every (row of weights, sequence) pair adds its products in one order: 8 running sums over the inputs, then those 8.
   The order does not depend on how many sequences there are, so a sequence gets the same bits alone and in company.

   Vectors are GCC's and clang's vector extension. The functions marked CLONES exist for AVX-512, AVX2 and neither; the
   loader takes what the processor can do. NaN and infinity go through as in IEEE arithmetic; denormals are kept. */

#include "multiply.h"
#include "rows.h"

#define LANES 8
#define STEP (4 * LANES) /* weights of a row taken at once */
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

/* Bytes of a stream that are fetched into the second-level cache beforehand where more is done with each than one product: the
   processor's own fetching stops while it multiplies, and what is fetched into the first level is limited to a few lines. */
#define AHEAD 6144

/* (out, in) weights: of floats, or of bytes with a factor for each row. */
struct matrix {
    const void *weight;
    const float *scale;  /* (out,) for bytes, NULL for floats */
    const float *bias;   /* (out,) or NULL */
    const float *floats; /* the weights, or what the bytes stand for */
};

/* Before the first call; gives the bits of the vectors that prompts are multiplied with, at most those that are asked for. */
int set_up(int64_t threads, int bits) {
    pool_grow(threads);
    return choose_vectors(bits);
}

struct layer {
    const float *gamma1, *beta1, *gamma2, *beta2;
    struct matrix qkv, out, up, down; /* qkv holds k and v alone in the query layer */
    float *keys, *values;             /* the cache, (heads * places, head_dim) */
};

struct network {
    int64_t layers, hidden, inner, heads, places, vocabulary, activation;
    double epsilon;
    const float *words, *positions, *queries, *gamma, *beta;
    struct matrix head;
    const struct layer *layer;
};

INLINE vec load(const float *at) {
    vec value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* Vector k of the four that begin at weight i of a row. Bytes lie so that a vector of whole words holds all four: lane l
   has the weights i + l, i + 8 + l, i + 16 + l and i + 24 + l, which two shifts each take out (GCC 12 turns a direct
   conversion of eight bytes into single steps, ten times slower). */
INLINE vec load_weight(const void *row, int64_t i, int k, int quantised) {
    if (!quantised)
        return load((const float *)row + i + k * LANES);
    ints word;
    memcpy(&word, (const int8_t *)row + i, sizeof word);
    return __builtin_convertvector((word << (24 - 8 * k)) >> 24, vec);
}

INLINE float total(vec v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

INLINE float scalar_weight(const void *row, int64_t i, int quantised) {
    return quantised ? ((const int8_t *)row)[i] : ((const float *)row)[i];
}

enum { MOST = 4 }; /* sequences that a row of weights is multiplied with at once */

/* sums[r][b] = weights of row r · x of sequence b, for ROWS rows and COUNT sequences. */
INLINE void tile(const char *weight, int64_t stride, const float *x, int64_t in, int rows, int count, int quantised,
                 float sums[3][MOST]) {
    vec running[3][MOST];
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
            vec w[3];
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

static float activated(float x, int kind) {
    if (kind == TANH_GELU)
        return x / (1.0f + expf(-x * (1.5957691216f + 0.0713548163f * x * x)));
    if (kind == ERF_GELU)
        return x * 0.5f * (1.0f + erff(x * 0.70710678f));
    return kind == FAST_GELU ? x / (1.0f + expf(-1.702f * x)) : x;
}

struct few { /* y (count, out) = activation(x (count, in) · weightᵀ + bias), or y += that */
    const struct matrix *matrix;
    const float *x;
    float *y;
    int64_t in, out, count;
    int activation, add;
};

INLINE void finish(const struct few *p, int64_t row, int64_t b, float sum) {
    const struct matrix *m = p->matrix;
    if (m->scale)
        sum *= m->scale[row];
    if (m->bias)
        sum += m->bias[row];
    float *y = p->y + b * p->out + row;
    *y = p->add ? *y + sum : activated(sum, p->activation);
}

/* Of ``rows`` rows, ``apart`` from each other, with all sequences. */
INLINE void block(const struct few *p, int64_t row, int rows, int64_t apart, int quantised) {
    int64_t line = p->in * (quantised ? 1 : 4), stride = line * apart;
    const char *weight = (const char *)p->matrix->weight + row * line;
    float sums[3][MOST];
    for (int64_t b = 0; b < p->count; b += MOST) {
        int count = (int)smaller(p->count - b, MOST);
        const float *x = p->x + b * p->in;
        switch (count) { /* numbers that the compiler can see, so that the running sums stay in registers */
        case 1: tile(weight, stride, x, p->in, rows, 1, quantised, sums); break;
        case 2: tile(weight, stride, x, p->in, rows, 2, quantised, sums); break;
        case 3: tile(weight, stride, x, p->in, rows, 3, quantised, sums); break;
        default: tile(weight, stride, x, p->in, rows, MOST, quantised, sums);
        }
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < count; c++)
                finish(p, row + r * apart, b + c, sums[r][c]);
    }
}

/* A third of the rows each as one of three streams: a processor fetches ahead of whoever reads on and on in one direction. Three
   rows that follow each other are read at half the speed: each stream then ends with its row. */
INLINE void block_rows(const struct few *p, int64_t first, int64_t last, int quantised) {
    int64_t third = (last - first) / 3, row = first;
    for (; row < first + third; row++)
        block(p, row, 3, third, quantised);
    for (row = first + 3 * third; row < last; row++)
        block(p, row, 1, 1, quantised);
}

CLONES static void rows_of_floats(const struct few *p, int64_t first, int64_t last) { block_rows(p, first, last, 0); }

CLONES static void rows_of_bytes(const struct few *p, int64_t first, int64_t last) { block_rows(p, first, last, 1); }

enum { TOGETHER = 96 }; /* of weights that a thread takes at once */

static void part_of_few(void *context, int64_t part) {
    const struct few *p = context;
    int64_t first = part * TOGETHER, last = smaller(first + TOGETHER, p->out);
    (p->matrix->scale ? rows_of_bytes : rows_of_floats)(p, first, last);
}

static void multiply_few(struct few p) {
    pool_run(part_of_few, &p, (p.out + TOGETHER - 1) / TOGETHER);
}

static void normalise(const float *x, const float *gamma, const float *beta, float *y, int64_t count, int64_t width,
                      double epsilon) {
    for (int64_t b = 0; b < count; b++, x += width, y += width) {
        double sum = 0, squares = 0;
        for (int64_t i = 0; i < width; i++)
            sum += x[i];
        double mean = sum / width;
        for (int64_t i = 0; i < width; i++)
            squares += (x[i] - mean) * (x[i] - mean);
        float scale = (float)(1.0 / sqrt(squares / width + epsilon)), middle = (float)mean;
        for (int64_t i = 0; i < width; i++)
            y[i] = (x[i] - middle) * scale * gamma[i] + beta[i];
    }
}

/* mixed (vectors · LANES,) = the values' sum by their scores, as shares of ``sum``. */
INLINE void mix(const float *scores, float sum, const float *values, const int32_t *read, int64_t length, int64_t dim,
                int vectors, float *mixed) {
    vec running[8] = {{0}};
    for (int64_t t = 0; t < length; t++)
        for (int k = 0; k < vectors; k++)
            running[k] += scores[t] * load(values + read[t] * dim + k * LANES);
    for (int k = 0; k < vectors; k++) {
        running[k] /= sum;
        memcpy(mixed + k * LANES, &running[k], sizeof running[k]);
    }
}

enum { KEYS = 8 }; /* that a query is multiplied with at once */

/* One head of one sequence: mixed (dim,) = softmax(query · keysᵀ) · values over the places read[0 … length). */
CLONES static void attend(const float *query, const float *keys, const float *values, const int32_t *read,
                          int64_t length, int64_t dim, float *scores, float *mixed) {
    float highest = -INFINITY, sum = 0;
    for (int64_t t = 0; t < length; t += KEYS) {
        const float *key[KEYS];
        for (int k = 0; k < KEYS; k++) /* behind the last one, that one again */
            key[k] = keys + read[smaller(t + k, length - 1)] * dim;
        for (int k = 0; k < KEYS; k++) /* keys that come soon; values, which are wanted as soon as the scores are there */
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
            float score = total(running[k]);
            for (int64_t j = i; j < dim; j++)
                score += key[k][j] * query[j];
            scores[t + k] = score;
            highest = score > highest || score != score ? score : highest; /* a NaN stays */
        }
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < length; t++) {
        scores[t] = quick_exp(scores[t] - highest);
        sum += scores[t];
    }
    int64_t first = 0;
    for (; first + 2 * STEP <= dim; first += 2 * STEP)
        mix(scores, sum, values + first, read, length, dim, 8, mixed + first);
    for (; first + STEP <= dim; first += STEP)
        mix(scores, sum, values + first, read, length, dim, 4, mixed + first);
    for (; first + LANES <= dim; first += LANES)
        mix(scores, sum, values + first, read, length, dim, 1, mixed + first);
    for (; first < dim; first++) {
        mixed[first] = 0;
        for (int64_t t = 0; t < length; t++)
            mixed[first] += scores[t] / sum * values[read[t] * dim + first];
    }
}

struct call {
    const struct network *network;
    int64_t batch, span;
    const int32_t *ids, *positions, *write, *read; /* read (batch, span); the others (batch,) */
    float *x, *normed, *projected, *mixed, *inner, *scores;
};

struct attention {
    const struct call *call;
    const struct layer *layer;
    const float *query, *fresh; /* each sequence's query; its new key, and behind that its new value */
    int64_t query_stride, stride;
};

static void keep(const struct attention *a, int64_t b) {
    const struct network *n = a->call->network;
    int64_t dim = n->hidden / n->heads;
    for (int64_t head = 0; head < n->heads; head++) {
        int64_t place = (head * n->places + a->call->write[b]) * dim;
        const float *key = a->fresh + b * a->stride + head * dim;
        memcpy(a->layer->keys + place, key, dim * sizeof *key);
        memcpy(a->layer->values + place, key + n->hidden, dim * sizeof *key);
    }
}

static void part_of_attention(void *context, int64_t part) {
    const struct attention *a = context;
    const struct call *c = a->call;
    const struct network *n = c->network;
    int64_t b = part / n->heads, head = part % n->heads, dim = n->hidden / n->heads, first = head * n->places * dim;
    attend(a->query + b * a->query_stride + head * dim, a->layer->keys + first, a->layer->values + first,
           c->read + b * c->span, c->positions[b] + 1, dim, c->scores + part * c->span,
           c->mixed + b * n->hidden + head * dim);
}

/* Keep the new keys and values of all, then attend: → mixed (batch, hidden). */
static void attention(struct attention a) {
    for (int64_t b = 0; b < a.call->batch; b++)
        keep(&a, b);
    pool_run(part_of_attention, &a, a.call->batch * a.call->network->heads);
}

static void run_layer(const struct call *c, const struct layer *layer, const float *queries) {
    const struct network *n = c->network;
    int64_t hidden = n->hidden, batch = c->batch, wide = queries ? 2 * hidden : 3 * hidden;
    normalise(c->x, layer->gamma1, layer->beta1, c->normed, batch, hidden, n->epsilon);
    multiply_few((struct few){&layer->qkv, c->normed, c->projected, hidden, wide, batch, NONE, 0});
    if (queries)
        attention((struct attention){c, layer, queries, c->projected, hidden, wide});
    else
        attention((struct attention){c, layer, c->projected, c->projected + hidden, wide, wide});
    multiply_few((struct few){&layer->out, c->mixed, c->x, hidden, hidden, batch, NONE, 1});
    normalise(c->x, layer->gamma2, layer->beta2, c->normed, batch, hidden, n->epsilon);
    multiply_few((struct few){&layer->up, c->normed, c->inner, hidden, n->inner, batch, (int)n->activation, 0});
    multiply_few((struct few){&layer->down, c->inner, c->x, n->inner, hidden, batch, NONE, 1});
}

/* How many floats ``decode_step`` needs as working memory. */
int64_t decode_room(const struct network *n, int64_t batch, int64_t span) {
    return batch * (7 * n->hidden + n->inner + n->heads * span);
}

/* logits (batch, vocabulary) of the tokens ``ids`` at ``positions``, kept at the places ``write``; ``read`` (batch,
   span) are each sequence's places from its position 0 on. The caller has checked that all lie inside. */
void decode_step(const struct network *n, const int32_t *ids, const int32_t *positions, const int32_t *write,
                 const int32_t *read, int64_t batch, int64_t span, float *room, float *logits) {
    int64_t hidden = n->hidden, all = batch * hidden;
    struct call c = {.network = n, .batch = batch, .span = span,
                     .ids = ids, .positions = positions, .write = write, .read = read};
    c.x = room;
    c.normed = c.x + all;
    c.projected = c.normed + all;
    c.mixed = c.projected + 3 * all;
    float *queries = c.mixed + all;
    c.inner = queries + all;
    c.scores = c.inner + batch * n->inner;
    for (int64_t b = 0; b < batch; b++) {
        const float *word = n->words + ids[b] * hidden, *place = n->positions + positions[b] * hidden;
        for (int64_t i = 0; i < hidden; i++)
            c.x[b * hidden + i] = word[i] + place[i];
        memcpy(queries + b * hidden, n->queries + positions[b] * hidden, hidden * sizeof *queries);
    }
    for (int64_t layer = 0; layer < n->layers; layer++) {
        int last = layer == n->layers - 1;
        if (last) {
            normalise(c.x, n->gamma, n->beta, c.normed, batch, hidden, n->epsilon);
            memcpy(c.x, c.normed, all * sizeof *c.x);
        }
        run_layer(&c, n->layer + layer, last ? queries : NULL);
    }
    multiply_few((struct few){&n->head, c.x, logits, hidden, n->vocabulary, batch, NONE, 0});
}

#include "prompt.h"

/* For each row of ``weight`` (out, in): bytes in the order of ``load_weight`` and the factor that gives the row back; the
   row itself becomes what these stand for. */
void quantise(float *weight, int64_t out, int64_t in, int8_t *quantised, float *scale) {
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
