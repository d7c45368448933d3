/* GEMV: products of one or a few rows with weights in fp32, fp16, bf16 or int8, for decode steps.

   With one row a product reads every weight once and multiplies it once, so the step is bound by memory bandwidth.
   To come close to that bound, one thread reads whole rows of weights, as three sequential streams; bias and residual
   are applied while a result is in a register, the activation while it is in the first-level cache; nothing is
   copied.

   Every (row of weights, sequence) pair adds its products in one order: 8 running sums over the inputs, then those 8.
   The order does not depend on the number of sequences: a sequence gets the same bits alone and in a batch. */

#include "network.h"
#include "rows.h"
#include "thread_pool.h"
#include "vectors.h"

#define STEP (4 * LANES) /* weights of a row taken at once */

/* Bytes of a stream that are prefetched into the second-level cache where each weight is used in more than one
   product: the processor's own prefetching stops while it multiplies, and prefetching into the first level is
   limited to a few lines. */
#define AHEAD 6144

#define F16C_HALVES 4 /* HALVES, where the processor converts them */
#if defined(__x86_64__) && defined(__GNUC__)
#define F16C __attribute__((target("avx2,fma,f16c")))
#endif

INLINE int bytes_of(int kind) { return kind == FLOATS ? 4 : kind == BYTES ? 1 : 2; }

/* Eight fp16 → fp32, exactly, denormals too: exponent and mantissa move to their places in fp32, which makes the number
   2^112 times too small. Infinity and NaN are not among weights. */
INLINE vec from_halves(const uint16_t *at) {
    words half;
    for (int i = 0; i < LANES; i++)
        half[i] = at[i];
    vec value = (vec)((half & 0x7FFF) << 13) * 0x1p112f;
    return (vec)((words)value | (half & 0x8000) << 16);
}

#ifdef F16C
struct eight_halves {
    uint16_t half[LANES];
};

/* The same by one instruction. Written in assembly because the compiler's own name for it cannot stand in a function
   that is inlined into others for any processor. */
INLINE vec converted_halves(const uint16_t *at) {
    vec value;
    __asm__("vcvtph2ps %1, %0" : "=x"(value) : "m"(*(const struct eight_halves *)at));
    return value;
}
#else
#define converted_halves from_halves
#endif

/* Vector k of the four that begin at weight i of a row. Bytes are stored so that one vector of words holds all four:
   lane l has the weights i + l, i + 8 + l, i + 16 + l and i + 24 + l, each extracted by two shifts (GCC 12 turns a
   direct conversion of eight bytes into single steps, ten times slower). Likewise a word of bf16 has the weights i + l
   and i + 8 + l. fp16 is stored in plain order. */
INLINE vec load_weight(const void *row, int64_t i, int k, int kind) {
    if (kind == FLOATS)
        return load((const float *)row + i + k * LANES);
    if (kind == BYTES) {
        ints word;
        memcpy(&word, (const int8_t *)row + i, sizeof word);
        return __builtin_convertvector((word << (24 - 8 * k)) >> 24, vec);
    }
    const uint16_t *half = (const uint16_t *)row + i;
    if (kind != BRAIN_FLOATS)
        return (kind == HALVES ? from_halves : converted_halves)(half + k * LANES);
    words word;
    memcpy(&word, half + k / 2 * 2 * LANES, sizeof word);
    return (vec)(k % 2 ? word & 0xFFFF0000 : word << 16);
}

INLINE float scalar_weight(const void *row, int64_t i, int kind) {
    if (kind == FLOATS)
        return ((const float *)row)[i];
    if (kind == BYTES)
        return ((const int8_t *)row)[i];
    uint16_t half[LANES] = {((const uint16_t *)row)[i]};
    words word = {half[0]};
    return kind == BRAIN_FLOATS ? ((vec)(word << 16))[0] : from_halves(half)[0];
}

enum {
    MOST = 4,     /* sequences multiplied with a row of weights at once */
    MANY = 16,    /* and those whose sums are kept until a row is read to its end */
    ROWS = 3,     /* of weights, read at once, each as a stream of its own */
    WIDENED = 3,  /* from so many sequences on, fp16 is made fp32 once for all of them; bf16 and bytes cost less */
    CHUNK = 512,  /* inputs of several sequences taken at once: they stay in the first-level cache */
    OUTPUTS = 96, /* rows of weights per work item */
};

INLINE void prefetch(const char *from, int64_t bytes) {
    for (int64_t line = 0; line < bytes; line += 64)
        __builtin_prefetch(from + line, 0, 2);
}

/* sums[r][b] += weights of row r · x of sequence b, over n inputs (whole STEPs), for ``rows`` rows and ``count``
   sequences. */
INLINE void tile(const char *weight, int64_t stride, const float *x, int64_t in, int64_t n, int rows, int count, int kind,
                 int prefetched, vec (*sums)[MANY]) {
    vec running[ROWS][MOST];
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < count; b++)
            running[r][b] = sums[r][b];
    for (int64_t i = 0; i < n; i += STEP) {
        for (int r = 0; prefetched && r < rows; r++)
            prefetch(weight + r * stride + i * bytes_of(kind) + AHEAD, STEP * bytes_of(kind));
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            vec w[ROWS];
            for (int r = 0; r < rows; r++)
                w[r] = load_weight(weight + r * stride, i, k, kind);
            for (int b = 0; b < count; b++) {
                vec value = load(x + b * in + i + k * LANES);
                for (int r = 0; r < rows; r++)
                    running[r][b] += w[r] * value;
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < count; b++)
            sums[r][b] = running[r][b];
}

/* The same for up to MANY sequences. */
INLINE void tiles(const char *weight, int64_t stride, const float *x, int64_t in, int64_t n, int rows, int count, int kind,
                  int prefetched, vec (*sums)[MANY]) {
    for (int b = 0; b < count; b += MOST, prefetched = 0) {
        vec(*part)[MANY] = (vec(*)[MANY])(&sums[0][b]);
        const float *of = x + b * in;
        switch (count - b) { /* compile-time constants, so that the running sums stay in registers */
        case 1: tile(weight, stride, of, in, n, rows, 1, kind, prefetched, part); break;
        case 2: tile(weight, stride, of, in, n, rows, 2, kind, prefetched, part); break;
        case 3: tile(weight, stride, of, in, n, rows, 3, kind, prefetched, part); break;
        default: tile(weight, stride, of, in, n, rows, MOST, kind, prefetched, part);
        }
    }
}

/* The same, the weights made fp32 once for all sequences. */
INLINE void widened_tiles(const char *weight, int64_t stride, const float *x, int64_t in, int64_t n, int rows, int count,
                          int kind, vec (*sums)[MANY]) {
    float wide[ROWS][CHUNK];
    for (int r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i += STEP) {
            prefetch(weight + r * stride + i * bytes_of(kind) + AHEAD, STEP * bytes_of(kind));
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                vec value = load_weight(weight + r * stride, i, k, kind);
                memcpy(&wide[r][i + k * LANES], &value, sizeof value);
            }
        }
    tiles((const char *)wide, sizeof wide[0], x, in, n, rows, count, FLOATS, 0, sums);
}

struct gemv {
    const struct matrix *matrix;
    const float *x;
    float *y;
    int64_t count;
    int after;
};

INLINE void finish(const struct gemv *p, int64_t row, int64_t b, float sum) {
    const struct matrix *m = p->matrix;
    if (m->scale)
        sum *= m->scale[row];
    if (m->bias)
        sum += m->bias[row];
    float *y = p->y + b * m->out + row;
    *y = p->after == RESIDUAL ? *y + sum : sum;
}

/* ``rows`` rows with stride ``apart``, for all sequences. */
INLINE void multiply_rows(const struct gemv *p, int64_t row, int rows, int64_t apart, int kind) {
    int64_t in = p->matrix->in, line = in * bytes_of(kind), stride = line * apart, whole = in / STEP * STEP;
    const char *weight = (const char *)p->matrix->weight + row * line;
    for (int64_t b = 0; b < p->count; b += MANY) {
        int count = (int)smaller(p->count - b, MANY);
        const float *x = p->x + b * in;
        vec sums[ROWS][MANY] = {0};
        int64_t chunk = kind == F16C_HALVES && count >= WIDENED ? CHUNK : whole;
        for (int64_t i = 0; i < whole; i += chunk) {
            int64_t n = smaller(chunk, whole - i);
            if (kind == F16C_HALVES && count >= WIDENED)
                widened_tiles(weight + i * bytes_of(kind), stride, x + i, in, n, rows, count, kind, sums);
            else
                tiles(weight + i * bytes_of(kind), stride, x + i, in, n, rows, count, kind, p->count > 1, sums);
        }
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < count; c++) {
                float sum = total(sums[r][c]);
                for (int64_t j = whole; j < in; j++)
                    sum += scalar_weight(weight + r * stride, j, kind) * x[c * in + j];
                finish(p, row + r * apart, b + c, sum);
            }
    }
}

/* Each third of the rows is one of three streams: a processor prefetches for long sequential reads. Three adjacent
   rows are read at half the speed, because each stream then ends with its row. */
INLINE void multiply_streams(const struct gemv *p, int64_t first, int64_t last, int kind) {
    int64_t third = (last - first) / ROWS, row = first;
    for (; row < first + third; row++)
        multiply_rows(p, row, ROWS, third, kind);
    for (row = first + ROWS * third; row < last; row++)
        multiply_rows(p, row, 1, 1, kind);
}

CLONES static void multiply_floats(const struct gemv *p, int64_t first, int64_t last) {
    multiply_streams(p, first, last, FLOATS);
}

CLONES static void multiply_bytes(const struct gemv *p, int64_t first, int64_t last) {
    multiply_streams(p, first, last, BYTES);
}

CLONES static void multiply_halves(const struct gemv *p, int64_t first, int64_t last) {
    multiply_streams(p, first, last, HALVES);
}

#ifdef F16C
static int has_f16c(void) { return __builtin_cpu_supports("f16c") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

F16C static void multiply_f16c_256(const struct gemv *p, int64_t first, int64_t last) {
    multiply_streams(p, first, last, F16C_HALVES);
}

/* With twice the registers, which several sequences need. */
__attribute__((target("avx512f,avx512vl,avx512dq,avx2,fma,f16c"))) static void multiply_f16c_512(
    const struct gemv *p, int64_t first, int64_t last) {
    multiply_streams(p, first, last, F16C_HALVES);
}

static void multiply_f16c(const struct gemv *p, int64_t first, int64_t last) {
    (__builtin_cpu_supports("avx512vl") ? multiply_f16c_512 : multiply_f16c_256)(p, first, last);
}
#else
#define multiply_f16c multiply_halves
static int has_f16c(void) { return 0; }
#endif

CLONES static void multiply_brain_floats(const struct gemv *p, int64_t first, int64_t last) {
    multiply_streams(p, first, last, BRAIN_FLOATS);
}

static void multiply_range(void *context, int64_t first, int64_t last) {
    const struct gemv *p = context;
    switch (p->matrix->kind) {
    case FLOATS: multiply_floats(p, first, last); break;
    case BYTES: multiply_bytes(p, first, last); break;
    case HALVES: (has_f16c() ? multiply_f16c : multiply_halves)(p, first, last); break;
    default: multiply_brain_floats(p, first, last);
    }
    for (int64_t b = 0; p->after < NONE && b < p->count; b++) {
        float *y = p->y + b * p->matrix->out + first;
        activate(y, NULL, y, last - first, p->after);
    }
}

EXPORT void gemv(const struct matrix *m, const float *x, float *y, int64_t count, int after) {
    parallel_for(multiply_range, &(struct gemv){m, x, y, count, after}, m->out, OUTPUTS);
}

INLINE void widen_as(const char *row, int64_t in, int kind, float scale, float *to) {
    int64_t i = 0;
    for (; i + STEP <= in; i += STEP)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            vec value = load_weight(row, i, k, kind) * scale;
            memcpy(to + i + k * LANES, &value, sizeof value);
        }
    for (; i < in; i++)
        to[i] = scalar_weight(row, i, kind) * scale;
}

CLONES static void widen_row(const char *row, int64_t in, int kind, float scale, float *to) {
    switch (kind) {
    case FLOATS: memcpy(to, row, in * sizeof *to); break;
    case BYTES: widen_as(row, in, BYTES, scale, to); break;
    case HALVES: widen_as(row, in, HALVES, 1, to); break;
    default: widen_as(row, in, BRAIN_FLOATS, 1, to);
    }
}

#ifdef F16C
F16C static void widen_f16c(const char *row, int64_t in, float *to) { widen_as(row, in, F16C_HALVES, 1, to); }
#else
#define widen_f16c(row, in, to) (void)0
#endif

void widen(const struct matrix *m, int64_t row, float *to) {
    const char *at = (const char *)m->weight + row * m->in * bytes_of((int)m->kind);
    if (m->kind == HALVES && has_f16c())
        widen_f16c(at, m->in, to);
    else
        widen_row(at, m->in, (int)m->kind, m->scale ? m->scale[row] : 1, to);
}

/* bf16 (out, in) in the order of ``load_weight``. */
EXPORT void arrange_brain_floats(const uint16_t *halves, int64_t out, int64_t in, uint16_t *arranged) {
    for (int64_t row = 0; row < out; row++)
        for (int64_t i = 0; i < in; i++) {
            int64_t start = i / STEP * STEP, place = i - start;
            int64_t at = place / (2 * LANES) * 2 * LANES + place % LANES * 2 + place / LANES % 2;
            arranged[row * in + (start + STEP <= in ? start + at : i)] = halves[row * in + i];
        }
}

/* For each row of ``weight`` (out, in): int8 values in the order of ``load_weight`` and the row's scale; the row itself
   is overwritten with the dequantised values. */
EXPORT void quantise(float *weight, int64_t out, int64_t in, int8_t *quantised, float *scale) {
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
