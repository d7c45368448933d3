/* The part of decode.c that reads many new tokens at once: products of matrices instead of single rows.

   A token's keys and values have the same bits whether a text is fed in whole or in parts: every sum has one order, and what
   lies behind a token is multiplied with 0. */

struct prompt {
    const struct network *network;
    int64_t batch, n, span, rows;                  /* rows of x that are at work: all tokens, or those that are asked for */
    const int32_t *ids, *positions, *write, *read; /* read (batch, span); the others (batch, n) */
    const int32_t *token;                          /* which token each row is, or NULL: row i is token i */
    float *x, *normed, *projected, *mixed, *inner, *given, *turned;
};

enum { LINES = 16, QUERIES = 96 }; /* rows between products, queries of one head, that a thread takes at once */

INLINE int64_t lines(int64_t rows) { return (rows + LINES - 1) / LINES; }

CLONES static void embed(const struct prompt *p, int64_t row) {
    const struct network *n = p->network;
    const float *word = n->words + p->ids[row] * n->hidden, *place = n->positions + p->positions[row] * n->hidden;
    for (int64_t i = 0; i < n->hidden; i++)
        p->x[row * n->hidden + i] = word[i] + place[i];
}

static void part_of_embedding(void *context, int64_t part) {
    const struct prompt *p = context;
    for (int64_t row = part * LINES; row < smaller((part + 1) * LINES, p->rows); row++)
        embed(p, row);
}

struct norming {
    const struct prompt *prompt;
    const float *gamma, *beta;
    float *to;
    int add; /* ``given`` to x first */
};

CLONES static void norm_line(const struct norming *n, int64_t row) {
    int64_t hidden = n->prompt->network->hidden;
    float *x = n->prompt->x + row * hidden;
    const float *given = n->prompt->given + row * hidden;
    for (int64_t i = 0; n->add && i < hidden; i++)
        x[i] += given[i];
    if (n->gamma)
        norm_to(x, n->gamma, n->beta, (float)n->prompt->network->epsilon, hidden, n->to + row * hidden);
}

static void part_of_norming(void *context, int64_t part) {
    const struct norming *n = context;
    for (int64_t row = part * LINES; row < smaller((part + 1) * LINES, n->prompt->rows); row++)
        norm_line(n, row);
}

static void add_and_norm(const struct prompt *p, int add, const float *gamma, const float *beta, float *to) {
    pool_run(part_of_norming, &(struct norming){p, gamma, beta, to, add}, lines(p->rows));
}

CLONES static void activate_line(const struct network *n, float *x) {
    activate(x, NULL, x, n->inner, (int)n->activation);
}

static void part_of_activation(void *context, int64_t part) {
    const struct prompt *p = context;
    for (int64_t row = part * LINES; row < smaller((part + 1) * LINES, p->rows); row++)
        activate_line(p->network, p->inner + row * p->network->inner);
}

struct turning {
    const struct matrix *matrix;
    float *turned, *y; /* (out, rows), (rows, out) */
    int64_t rows, out;
};

enum { TURNED = 64, FEW = 128 }; /* outputs that a thread takes at once; rows that are few */

static void part_of_biases(void *context, int64_t part) {
    const struct turning *t = context;
    for (int64_t i = part * TURNED; i < smaller((part + 1) * TURNED, t->out); i++)
        for (int64_t row = 0; row < t->rows; row++)
            t->turned[i * t->rows + row] = t->matrix->bias[i];
}

static void part_of_turning(void *context, int64_t part) {
    const struct turning *t = context;
    int64_t i = part * TURNED, last = smaller(i + TURNED, t->out);
    for (; i + 4 <= last; i += 4)
        turn(t->y + i, t->out, t->turned + i * t->rows, t->rows, t->rows);
    for (; i < last; i++)
        for (int64_t row = 0; row < t->rows; row++)
            t->y[row * t->out + i] = t->turned[i * t->rows + row];
}

/* y (rows, out) = x (rows, in) · weightᵀ + bias. Copying the weights into panels costs more than multiplying a few rows: of few
   the turned product is made, whose first matrix the weights are, which stays where it is. Every sum has the same order
   either way, the bias first. */
static void project(const struct prompt *p, const struct matrix *m, const float *x, int64_t in, int64_t out, float *y) {
    int64_t parts = (out + TURNED - 1) / TURNED;
    if (p->rows > FEW) {
        struct product straight = product(0, 1, p->rows, out, in, x, in, m->floats, in, y, out);
        straight.bias = m->bias;
        whole_product(straight);
        return;
    }
    struct turning t = {m, p->turned, y, p->rows, out};
    struct product turned = product(0, 1, out, p->rows, in, m->floats, in, x, in, p->turned, p->rows);
    turned.add = 1;
    pool_run(part_of_biases, &t, parts);
    whole_product(turned);
    pool_run(part_of_turning, &t, parts);
}

struct reading { /* attention of one layer */
    const struct prompt *prompt;
    const struct layer *layer;
    int64_t stride, keys_at; /* of ``projected``: floats of a token, and where its key begins; its value follows */
    int query_layer;
};

static void part_of_keeping(void *context, int64_t part) {
    const struct reading *r = context;
    const struct prompt *p = r->prompt;
    const struct network *n = p->network;
    int64_t dim = n->hidden / n->heads;
    for (int64_t token = part * LINES; token < smaller((part + 1) * LINES, p->batch * p->n); token++)
        for (int64_t head = 0; head < n->heads; head++) {
            int64_t place = (head * n->places + p->write[token]) * dim;
            const float *key = p->projected + token * r->stride + r->keys_at + head * dim;
            memcpy(r->layer->keys + place, key, dim * sizeof *key);
            memcpy(r->layer->values + place, key + n->hidden, dim * sizeof *key);
        }
}

INLINE int64_t token_of(const struct prompt *p, int64_t row) { return p->token ? p->token[row] : row; }

/* products of queries and keys → probabilities: row i sees the keys 0 … last[i] of ``keys`` */
CLONES static void softmax_lines(float *scores, int64_t keys, const int32_t *last, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        float *row = scores + i * keys, highest = -INFINITY, sum = 0;
        int64_t seen = last[i] + 1;
#pragma omp simd reduction(max : highest)
        for (int64_t j = 0; j < seen; j++)
            highest = row[j] > highest ? row[j] : highest;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < seen; j++) {
            row[j] = quick_exp(row[j] - highest);
            sum += row[j];
        }
        float share = 1.0f / sum;
        for (int64_t j = 0; j < seen; j++)
            row[j] *= share;
        memset(row + seen, 0, (keys - seen) * sizeof *row);
    }
}

/* Queries of one sequence and head, at most QUERIES, rows first … last of x that belong to the sequence. */
static void read_block(const struct reading *r, int64_t sequence, int64_t head, int64_t first, int64_t count) {
    const struct prompt *p = r->prompt;
    const struct network *n = p->network;
    int64_t dim = n->hidden / n->heads, keys = 0;
    int32_t last[QUERIES];
    for (int64_t i = 0; i < count; i++) {
        last[i] = p->positions[token_of(p, first + i)];
        keys = last[i] >= keys ? last[i] + 1 : keys;
    }
    float *scores = room(2, QUERIES * keys + (2 * keys + QUERIES) * dim), *key = scores + QUERIES * keys;
    float *value = key + keys * dim, *query = value + keys * dim;
    for (int64_t t = 0; t < keys; t++) {
        int64_t place = (head * n->places + p->read[sequence * p->span + t]) * dim;
        memcpy(key + t * dim, r->layer->keys + place, dim * sizeof *key);
        memcpy(value + t * dim, r->layer->values + place, dim * sizeof *key);
    }
    for (int64_t i = 0; i < count; i++) {
        int64_t token = token_of(p, first + i);
        const float *from = r->query_layer ? n->queries + p->positions[token] * n->hidden : p->projected + token * r->stride;
        memcpy(query + i * dim, from + head * dim, dim * sizeof *query);
    }
    multiply(product(0, 1, count, keys, dim, query, dim, key, dim, scores, keys));
    softmax_lines(scores, keys, last, count);
    multiply(product(0, 0, count, dim, keys, scores, keys, value, dim, p->mixed + first * n->hidden + head * dim, n->hidden));
}

static void part_of_reading(void *context, int64_t part) {
    const struct reading *r = context;
    const struct prompt *p = r->prompt;
    int64_t heads = p->network->heads, head = part % heads, block = part / heads;
    if (p->token) { /* a few rows of any sequences */
        read_block(r, p->token[block] / p->n, head, block, 1);
        return;
    }
    int64_t blocks = (p->n + QUERIES - 1) / QUERIES, sequence = block / blocks, start = block % blocks * QUERIES;
    read_block(r, sequence, head, sequence * p->n + start, smaller(QUERIES, p->n - start));
}

static void read_layer(struct prompt *p, const struct layer *layer, const int32_t *token, int64_t rows) {
    const struct network *n = p->network;
    int64_t hidden = n->hidden, wide = token ? 2 * hidden : 3 * hidden;
    struct reading r = {p, layer, wide, wide - 2 * hidden, token != NULL};
    project(p, &layer->qkv, p->normed, hidden, wide, p->projected);
    pool_run(part_of_keeping, &r, lines(p->rows));
    if (token) { /* the query layer: from here on only what is asked for */
        for (int64_t i = 0; i < rows; i++) /* normed is free now */
            memcpy(p->normed + i * hidden, p->x + token[i] * hidden, hidden * sizeof(float));
        float *x = p->x;
        p->x = p->normed, p->normed = x, p->token = token, p->rows = rows;
    }
    int64_t blocks = token ? rows : p->batch * ((p->n + QUERIES - 1) / QUERIES);
    pool_run(part_of_reading, &r, blocks * n->heads);
    project(p, &layer->out, p->mixed, hidden, hidden, p->given);
    add_and_norm(p, 1, layer->gamma2, layer->beta2, p->normed);
    project(p, &layer->up, p->normed, hidden, n->inner, p->inner);
    pool_run(part_of_activation, p, lines(p->rows));
    project(p, &layer->down, p->inner, n->inner, hidden, p->given);
}

/* How many floats ``decode_prompt`` needs as working memory. */
int64_t prompt_room(const struct network *n, int64_t tokens, int64_t rows) {
    return (tokens > rows ? tokens : rows) * (7 * n->hidden + n->inner + (3 * n->hidden > n->inner ? 3 * n->hidden : n->inner));
}

/* logits (rows, vocabulary) of the tokens ``token`` (rows,), numbers from 0 to batch · n, of n new tokens each of ``batch``
   sequences; the other arguments as of ``decode_step``. The caller has checked that all lie inside. */
void decode_prompt(const struct network *n, const int32_t *ids, const int32_t *positions, const int32_t *write,
                   const int32_t *read, int64_t batch, int64_t count, int64_t span, const int32_t *token, int64_t rows,
                   float *room, float *logits) {
    int64_t tokens = batch * count, most = tokens > rows ? tokens : rows, all = most * n->hidden;
    struct prompt p = {.network = n, .batch = batch, .n = count, .span = span, .rows = tokens,
                       .ids = ids, .positions = positions, .write = write, .read = read};
    p.x = room;
    p.normed = p.x + all;
    p.projected = p.normed + all;
    p.mixed = p.projected + 3 * all;
    p.given = p.mixed + all;
    p.inner = p.given + all;
    p.turned = p.inner + most * n->inner;
    pool_run(part_of_embedding, &p, lines(p.rows));
    for (int64_t layer = 0; layer < n->layers; layer++) {
        const struct layer *l = n->layer + layer;
        int query_layer = layer == n->layers - 1;
        if (query_layer) {
            add_and_norm(&p, layer > 0, n->gamma, n->beta, p.normed);
            memcpy(p.x, p.normed, tokens * n->hidden * sizeof(float));
        }
        add_and_norm(&p, layer > 0 && !query_layer, l->gamma1, l->beta1, p.normed);
        read_layer(&p, l, query_layer ? token : NULL, rows);
    }
    add_and_norm(&p, 1, NULL, NULL, NULL);
    if (rows <= 8) { /* each row of words is read once, as of a step */
        multiply_few((struct few){&n->head, p.x, logits, n->hidden, n->vocabulary, rows, NONE, 0});
        return;
    }
    whole_product(product(0, 1, rows, n->vocabulary, n->hidden, p.x, n->hidden, n->words, n->hidden, logits, n->vocabulary));
}
