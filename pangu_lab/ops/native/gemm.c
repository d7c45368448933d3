/* GEMM: products of fp32 matrices, packed into panels, multiplied tile by tile (Goto & van de Geijn, ACM TOMS 34,
   2008).

   All threads copy both matrices into panels, which a tile reads sequentially; then threads take tiles. Every sum runs
   over the inputs in order, DEPTH of them at a time: its bits depend neither on the number of threads nor on which
   thread does what. */

#include "gemm.h"

#include <string.h>

#include "scratch.h"
#include "thread_pool.h"

typedef float four __attribute__((vector_size(16), aligned(4), may_alias));

/* Four lines of ``depth`` numbers → columns of a panel of ``width``: 4 × 4 squares transposed in registers. */
INLINE void transpose_four(float *to, int64_t width, const float *from, int64_t across, int64_t depth) {
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

void transpose(float *to, int64_t to_line, const float *from, int64_t from_line, int64_t lines, int64_t depth) {
    int64_t i = 0;
    for (; i + 4 <= lines; i += 4)
        transpose_four(to + i, to_line, from + i * from_line, from_line, depth);
    for (; i < lines; i++)
        for (int64_t k = 0; k < depth; k++)
            to[k * to_line + i] = from[i * from_line + k];
}

struct kind { /* processor type */
    int bits;           /* vector width */
    int64_t high, wide; /* a tile's rows and columns */
    void (*pack_rows)(float *, const float *, int64_t, int64_t, int64_t, int64_t);
    void (*pack_columns)(float *, const float *, int64_t, int64_t, int64_t, int64_t);
    void (*tile)(int64_t, const float *, int64_t, const float *, const float *, int, float *, int64_t);
};

#if defined(__x86_64__)
#define NAME(x) x##_512
#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,fma")))
#define WIDE 16
#define HIGH 12
#include "gemm_tile.h"
#define NAME(x) x##_256
#define TARGET __attribute__((target("avx2,fma")))
#define WIDE 8
#define HIGH 6
#include "gemm_tile.h"
#endif
#define NAME(x) x##_128
#define TARGET
#define WIDE 4
#define HIGH 6
#include "gemm_tile.h"

static struct kind processor; /* this machine's */

static struct kind best_kind(int bits) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (bits >= 512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return kind_512;
    if (bits >= 256 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return kind_256;
#endif
    return kind_128;
}

/* Call before the first kernel; sets and returns the vector width in bits for products, at most the width asked
   for. */
EXPORT int set_up(int64_t threads, int bits) {
    grow_pool(threads);
    processor = best_kind(bits);
    return processor.bits;
}

enum {
    DEPTH = 384,   /* inputs at a time: a panel of a tile's rows stays in the first-level cache */
    ACROSS = 192,  /* columns at a time: their panels stay in the second-level cache */
    ROWS = 96,     /* per work item, and lines packed per work item */
    PACKED = 4608, /* rows and columns packed at once: a multiple of every tile's */
};

INLINE int64_t parts(int64_t x, int64_t size) { return (x + size - 1) / size; }

INLINE int64_t rounded(int64_t x, int64_t to) { return parts(x, to) * to; }

struct product product(int ta, int tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t a_line, const float *b,
                       int64_t b_line, float *c, int64_t c_line) {
    return (struct product){m, n, k, a, ta ? 1 : a_line, ta ? a_line : 1, b, tb ? 1 : b_line, tb ? b_line : 1, c,
                            c_line, NULL, 0};
}

/* Whether whole panels of a are read in place: true if a is stored by rows. */
INLINE int stays(const struct product *p) { return p->a_columns == 1; }

/* The tiles of m rows and n columns starting at (row, column). a and b are the panels from there on, for the inputs
   from … from + depth. */
static void tiles(const struct product *p, const float *a, const float *b, int64_t row, int64_t m, int64_t column,
                  int64_t n, int64_t from, int64_t depth) {
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
                        edge[y * wide + x] = y >= rows || x >= columns ? 0
                                             : add                     ? to[y * p->c_rows + x]
                                             : more                    ? more[x]
                                                                       : 0;
                processor.tile(depth, left, line, b + j * depth, NULL, 1, edge, wide);
                for (int64_t y = 0; y < rows; y++)
                    memcpy(to + y * p->c_rows, edge + y * wide, columns * sizeof *to);
            }
        }
}

/* Pack the panels of rows and columns, each array starting at ``row`` or ``column``. */
static void pack_rows(const struct product *p, int64_t row, int64_t rows, int64_t from, int64_t depth, float *to) {
    for (int64_t i = 0; i < rows; i += processor.high)
        if (!stays(p) || i + processor.high > rows)
            processor.pack_rows(to + i * depth, p->a + (row + i) * p->a_rows + from * p->a_columns, p->a_rows,
                                p->a_columns, smaller(processor.high, rows - i), depth);
}

static void pack_columns(const struct product *p, int64_t column, int64_t columns, int64_t from, int64_t depth,
                         float *to) {
    for (int64_t j = 0; j < columns; j += processor.wide)
        processor.pack_columns(to + j * depth, p->b + from * p->b_rows + (column + j) * p->b_columns, p->b_columns,
                               p->b_rows, smaller(processor.wide, columns - j), depth);
}

void small_gemm(struct product p) {
    int64_t rows = rounded(p.m, processor.high), columns = rounded(p.n, processor.wide), deep = smaller(DEPTH, p.k);
    float *a = thread_scratch(OF_SMALL_GEMM, (rows + columns) * deep), *b = a + rows * deep;
    for (int64_t from = 0; from < p.k; from += DEPTH) {
        int64_t depth = smaller(DEPTH, p.k - from);
        pack_rows(&p, 0, p.m, from, depth, a);
        pack_columns(&p, 0, p.n, from, depth, b);
        tiles(&p, a, b, 0, p.m, 0, p.n, from, depth);
    }
}

struct section { /* the part of a product that is packed at once, and how its multiplication is divided */
    const struct product *p;
    int64_t row, rows, column, columns, from, depth, packed_rows, part_columns, column_parts;
    float *a, *b;
};

/* Work items of ROWS lines each: first the lines of a that are packed, then those of b. */
static void pack_part(void *context, int64_t part, int64_t end) {
    const struct section *s = context;
    int64_t start = part * ROWS;
    if (start < s->packed_rows)
        pack_rows(s->p, s->row + start, smaller(ROWS, s->rows - start), s->from, s->depth, s->a + start * s->depth);
    else {
        start -= rounded(s->packed_rows, ROWS);
        pack_columns(s->p, s->column + start, smaller(ROWS, s->columns - start), s->from, s->depth,
                     s->b + start * s->depth);
    }
}

static void multiply_part(void *context, int64_t part, int64_t end) {
    const struct section *s = context;
    int64_t row = part / s->column_parts * ROWS, column = part % s->column_parts * s->part_columns;
    tiles(s->p, s->a + row * s->depth, s->b + column * s->depth, s->row + row, smaller(ROWS, s->rows - row),
          s->column + column, smaller(s->part_columns, s->columns - column), s->from, s->depth);
}

/* The columns are packed with the first rows, and reused for the rows that follow. */
static void multiply_section(struct section *s) {
    int64_t row_parts = parts(s->rows, ROWS), of_b = s->row ? 0 : parts(s->columns, ROWS);
    s->packed_rows = stays(s->p) && s->rows % processor.high == 0 ? 0 : s->rows;
    parallel_for(pack_part, s, parts(s->packed_rows, ROWS) + of_b, 1);
    s->column_parts = smaller(parts(4 * pool_size(), row_parts), parts(s->columns, ACROSS));
    s->part_columns = rounded(parts(s->columns, s->column_parts), ACROSS);
    s->column_parts = parts(s->columns, s->part_columns);
    parallel_for(multiply_part, s, row_parts * s->column_parts, 1);
}

void gemm(struct product p) {
    int64_t deep = smaller(DEPTH, p.k), rows = smaller(PACKED, p.m), columns = smaller(PACKED, p.n);
    struct section s = {.p = &p, .a = thread_scratch(OF_GEMM, (rounded(rows, ROWS) + rounded(columns, ROWS)) * deep)};
    s.b = s.a + rounded(rows, ROWS) * deep;
    for (s.column = 0; s.column < p.n; s.column += PACKED)
        for (s.from = 0; s.from < p.k; s.from += DEPTH)
            for (s.row = 0; s.row < p.m; s.row += PACKED) {
                s.depth = smaller(DEPTH, p.k - s.from);
                s.rows = smaller(PACKED, p.m - s.row), s.columns = smaller(PACKED, p.n - s.column);
                multiply_section(&s);
            }
}
