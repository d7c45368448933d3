/* Products of fp32 matrices: packed into panels, multiplied tile by tile (Goto & van de Geijn, ACM TOMS 34, 2008).

   Both matrices are copied into panels that a tile reads from the first to the last number, by all threads; then threads
   take tiles. Every sum runs over the inputs in order, DEPTH of them at a time: its bits depend on neither the number of
   threads nor on who does what. */

#ifndef PANGU_LAB_MULTIPLY_H
#define PANGU_LAB_MULTIPLY_H

#include <stdlib.h>

#include "common.h"
#include "pool.h"

typedef float four __attribute__((vector_size(16), aligned(4), may_alias));

/* Four lines of ``depth`` numbers → columns of a panel of ``width``: squares of four turned in registers. */
INLINE void turn(float *to, int64_t width, const float *from, int64_t across, int64_t depth) {
    int64_t k = 0;
    for (; k + 4 <= depth; k += 4) {
        four a = *(const four *)(from + k), b = *(const four *)(from + across + k);
        four c = *(const four *)(from + 2 * across + k), d = *(const four *)(from + 3 * across + k);
        typedef int32_t order __attribute__((vector_size(16)));
        four ab = __builtin_shuffle(a, b, (order){0, 4, 1, 5}), AB = __builtin_shuffle(a, b, (order){2, 6, 3, 7});
        four cd = __builtin_shuffle(c, d, (order){0, 4, 1, 5}), CD = __builtin_shuffle(c, d, (order){2, 6, 3, 7});
        *(four *)(to + k * width) = __builtin_shuffle(ab, cd, (order){0, 1, 4, 5});
        *(four *)(to + (k + 1) * width) = __builtin_shuffle(ab, cd, (order){2, 3, 6, 7});
        *(four *)(to + (k + 2) * width) = __builtin_shuffle(AB, CD, (order){0, 1, 4, 5});
        *(four *)(to + (k + 3) * width) = __builtin_shuffle(AB, CD, (order){2, 3, 6, 7});
    }
    for (; k < depth; k++)
        for (int i = 0; i < 4; i++)
            to[k * width + i] = from[i * across + k];
}

#if defined(__x86_64__)
#define NAME(x) x##_512
#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,fma")))
#define WIDE 16
#define HIGH 12
#include "tile.h"
#undef NAME
#undef TARGET
#undef WIDE
#undef HIGH
#define NAME(x) x##_256
#define TARGET __attribute__((target("avx2,fma")))
#define WIDE 8
#define HIGH 6
#include "tile.h"
#undef NAME
#undef TARGET
#undef WIDE
#undef HIGH
#endif
#define NAME(x) x##_128
#define TARGET
#define WIDE 4
#define HIGH 6
#include "tile.h"
#undef NAME
#undef TARGET
#undef WIDE
#undef HIGH

static struct {
    int64_t high, wide; /* a tile's rows and columns */
    void (*pack_rows)(float *, const float *, int64_t, int64_t, int64_t, int64_t);
    void (*pack_columns)(float *, const float *, int64_t, int64_t, int64_t, int64_t);
    void (*tile)(int64_t, const float *, int64_t, const float *, const float *, int, float *, int64_t);
} processor;

/* Use vectors of at most so many bits; how many they have then. */
static int choose_vectors(int bits) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (bits >= 512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
        processor.high = 12, processor.wide = 32;
        processor.pack_rows = pack_rows_512, processor.pack_columns = pack_columns_512, processor.tile = tile_512;
        return 512;
    }
    if (bits >= 256 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        processor.high = 6, processor.wide = 16;
        processor.pack_rows = pack_rows_256, processor.pack_columns = pack_columns_256, processor.tile = tile_256;
        return 256;
    }
#endif
    processor.high = 6, processor.wide = 8;
    processor.pack_rows = pack_rows_128, processor.pack_columns = pack_columns_128, processor.tile = tile_128;
    return 128;
}

/* From an address that vectors like: a compiler may take the numbers before the first such address one by one, and then a sum's
   order, and its last bit, would depend on where the system put the memory. Freed by ``free``. */
static float *aligned(int64_t floats) {
    return aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
}

/* Working memory ``which`` of this thread; what it held before is lost. */
static float *room(int which, int64_t floats) {
    static _Thread_local float *memory[3];
    static _Thread_local int64_t size[3];
    if (floats > size[which]) {
        free(memory[which]);
        memory[which] = aligned(floats);
        size[which] = memory[which] ? floats : 0;
        if (!memory[which])
            abort(); /* as everywhere else where the memory ends */
    }
    return memory[which];
}

/* c (m, n) = a (m, k) · b (k, n), plus c with ``add``, else plus bias (n,) in each row if there is one. A matrix's
   element (row, column) lies at row · rows + column · columns; one of the two is 1; c is by rows. */
struct product {
    int64_t m, n, k;
    const float *a;
    int64_t a_rows, a_columns;
    const float *b;
    int64_t b_rows, b_columns;
    float *c;
    int64_t c_rows;
    const float *bias;
    int add;
};

enum {
    DEPTH = 384,   /* inputs at a time: a panel of a tile's rows stays in the first-level cache */
    ACROSS = 192,  /* columns at a time: their panels stay in the second-level cache */
    ROWS = 96,     /* that a thread takes at once, and lines that it packs */
    PACKED = 4608, /* rows and columns that are packed at once: a multiple of every tile's */
};

INLINE int64_t rounded(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

/* c (m, n) = a · b, their lines stored ``a_line`` and ``b_line`` apart; a as (k, m) if ``ta``, b as (n, k) if ``tb``. */
INLINE struct product product(int ta, int tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t a_line, const float *b,
                              int64_t b_line, float *c, int64_t c_line) {
    return (struct product){m, n, k, a, ta ? 1 : a_line, ta ? a_line : 1, b, tb ? 1 : b_line, tb ? b_line : 1, c, c_line, NULL, 0};
}

/* Whether whole panels of a are read where they are: by rows they lie well. */
INLINE int stays(const struct product *p) { return p->a_columns == 1; }

/* The tiles of rows m and columns n from (row, column) on. a and b are the panels from there on, of inputs from … from + depth. */
static void tiles(const struct product *p, const float *a, const float *b, int64_t row, int64_t m, int64_t column, int64_t n,
                  int64_t from, int64_t depth) {
    int64_t high = processor.high, wide = processor.wide;
    const float *bias = p->bias && !from ? p->bias + column : NULL;
    float edge[12 * 32], *c = p->c + row * p->c_rows + column;
    int add = p->add || from;
    for (int64_t start = 0; start < n; start += ACROSS)
        for (int64_t i = 0; i < m; i += high) {
            int64_t rows = smaller(high, m - i), line = stays(p) && rows == high ? p->a_rows : 0;
            const float *left = line ? p->a + (row + i) * line + from : a + i * depth;
            for (int64_t j = start; j < smaller(start + ACROSS, n); j += wide) {
                const float *more = bias ? bias + j : NULL;
                float *to = c + i * p->c_rows + j;
                int64_t columns = smaller(wide, n - j);
                if (rows == high && columns == wide) {
                    processor.tile(depth, left, line, b + j * depth, more, add, to, p->c_rows);
                    continue;
                }
                for (int64_t y = 0; y < high; y++)
                    for (int64_t x = 0; x < wide; x++)
                        edge[y * wide + x] = y >= rows || x >= columns ? 0 : add ? to[y * p->c_rows + x] : more ? more[x] : 0;
                processor.tile(depth, left, line, b + j * depth, NULL, 1, edge, wide);
                for (int64_t y = 0; y < rows; y++)
                    memcpy(to + y * p->c_rows, edge + y * wide, columns * sizeof *to);
            }
        }
}

/* The panels of rows and columns, each array of panels from ``row`` or ``column`` on. */
static void pack_rows(const struct product *p, int64_t row, int64_t rows, int64_t from, int64_t depth, float *to) {
    for (int64_t i = 0; i < rows; i += processor.high)
        if (!stays(p) || i + processor.high > rows)
            processor.pack_rows(to + i * depth, p->a + (row + i) * p->a_rows + from * p->a_columns, p->a_rows, p->a_columns,
                                smaller(processor.high, rows - i), depth);
}

static void pack_columns(const struct product *p, int64_t column, int64_t columns, int64_t from, int64_t depth, float *to) {
    for (int64_t j = 0; j < columns; j += processor.wide)
        processor.pack_columns(to + j * depth, p->b + from * p->b_rows + (column + j) * p->b_columns, p->b_columns, p->b_rows,
                               smaller(processor.wide, columns - j), depth);
}

/* By this thread alone; for small products. */
static void multiply(struct product p) {
    int64_t rows = rounded(p.m, processor.high), columns = rounded(p.n, processor.wide), deep = smaller(DEPTH, p.k);
    float *a = room(0, (rows + columns) * deep), *b = a + rows * deep;
    for (int64_t from = 0; from < p.k; from += DEPTH) {
        int64_t depth = smaller(DEPTH, p.k - from);
        pack_rows(&p, 0, p.m, from, depth, a);
        pack_columns(&p, 0, p.n, from, depth, b);
        tiles(&p, a, b, 0, p.m, 0, p.n, from, depth);
    }
}

struct block { /* what is packed of a product at once, and in which parts it is multiplied */
    const struct product *p;
    int64_t row, rows, column, columns, from, depth, packed_rows, part_columns, column_parts;
    float *a, *b;
};

static void part_of_packing(void *context, int64_t part) {
    const struct block *k = context;
    int64_t start = part * ROWS;
    if (start < k->packed_rows)
        pack_rows(k->p, k->row + start, smaller(ROWS, k->rows - start), k->from, k->depth, k->a + start * k->depth);
    else {
        start -= rounded(k->packed_rows, ROWS);
        pack_columns(k->p, k->column + start, smaller(ROWS, k->columns - start), k->from, k->depth, k->b + start * k->depth);
    }
}

static void part_of_tiles(void *context, int64_t part) {
    const struct block *k = context;
    int64_t row = part / k->column_parts * ROWS, column = part % k->column_parts * k->part_columns;
    tiles(k->p, k->a + row * k->depth, k->b + column * k->depth, k->row + row, smaller(ROWS, k->rows - row),
          k->column + column, smaller(k->part_columns, k->columns - column), k->from, k->depth);
}

/* By all threads. */
static void whole_product(struct product p) {
    int64_t deep = smaller(DEPTH, p.k), rows = smaller(PACKED, p.m), columns = smaller(PACKED, p.n);
    struct block k = {.p = &p, .a = room(1, (rounded(rows, ROWS) + rounded(columns, ROWS)) * deep)};
    k.b = k.a + rounded(rows, ROWS) * deep;
    for (k.column = 0; k.column < p.n; k.column += PACKED)
        for (k.from = 0; k.from < p.k; k.from += DEPTH)
            for (k.row = 0; k.row < p.m; k.row += PACKED) {
                k.depth = smaller(DEPTH, p.k - k.from);
                k.rows = smaller(PACKED, p.m - k.row), k.columns = smaller(PACKED, p.n - k.column);
                int64_t row_parts = (k.rows + ROWS - 1) / ROWS, of_b = k.row ? 0 : (k.columns + ROWS - 1) / ROWS;
                k.packed_rows = stays(&p) && k.rows % processor.high == 0 ? 0 : k.rows;
                pool_run(part_of_packing, &k, (k.packed_rows + ROWS - 1) / ROWS + of_b);
                k.column_parts = smaller((4 * pool.threads + row_parts - 1) / row_parts, (k.columns + ACROSS - 1) / ACROSS);
                k.part_columns = rounded((k.columns + k.column_parts - 1) / k.column_parts, ACROSS);
                k.column_parts = (k.columns + k.part_columns - 1) / k.part_columns;
                pool_run(part_of_tiles, &k, row_parts * k.column_parts);
            }
}

#endif
