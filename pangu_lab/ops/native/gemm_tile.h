/* Packed matrices, and a tile of their product in registers: a template, which gemm.c includes once for each
   kind of processor, with

       NAME(x)  the function's name there        WIDE    floats of a vector
       TARGET   the compiler's attribute         HIGH    rows of a tile: HIGH · 2 running sums fill the registers

   A panel of the first matrix is HIGH rows, stored (depth, HIGH); of the second 2 · WIDE columns, stored
   (depth, 2 · WIDE). Where a panel extends beyond the matrix it is 0. */

typedef float NAME(vec) __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));

/* Line i of a panel is from[i · across + k · along], k from 0 to depth; there are ``lines`` of them. */
INLINE void NAME(pack)(float *restrict to, int width, const float *restrict from, int64_t across, int64_t along,
                       int64_t lines, int64_t depth) {
    if (across == 1 && lines == width) {
        for (int64_t k = 0; k < depth; k++, to += width, from += along)
            memcpy(to, from, width * sizeof *to);
        return;
    }
    int64_t done = 0;
    if (along == 1)
        for (; done + 4 <= lines; done += 4)
            transpose_four(to + done, width, from + done * across, across, depth);
    for (int64_t i = done; i < width; i++)
        for (int64_t k = 0; k < depth; k++)
            to[k * width + i] = i < lines ? from[i * across + k * along] : 0;
}

TARGET static void NAME(pack_rows)(float *to, const float *from, int64_t across, int64_t along, int64_t lines,
                                   int64_t depth) {
    NAME(pack)(to, HIGH, from, across, along, lines, depth);
}

TARGET static void NAME(pack_columns)(float *to, const float *from, int64_t across, int64_t along, int64_t lines,
                                      int64_t depth) {
    NAME(pack)(to, 2 * WIDE, from, across, along, lines, depth);
}

/* c (HIGH, 2 · WIDE) = start + rows of a · b panel; start is c, or bias in each row, or 0. Element (i, k) of a is
   a[i · across + k · along]. */
INLINE void NAME(sums)(int64_t depth, const float *a, int64_t across, int64_t along, const float *b, const float *bias,
                       int add, float *c, int64_t stride) {
    NAME(vec) sums[HIGH][2];
#pragma GCC unroll 16
    for (int i = 0; i < HIGH; i++)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++)
            sums[i][j] = add    ? *(const NAME(vec) *)(c + i * stride + j * WIDE)
                         : bias ? *(const NAME(vec) *)(bias + j * WIDE)
                                : (NAME(vec)){0};
    for (int64_t k = 0; k < depth; k++, b += 2 * WIDE) {
        NAME(vec) left = *(const NAME(vec) *)b, right = *(const NAME(vec) *)(b + WIDE);
#pragma GCC unroll 16
        for (int i = 0; i < HIGH; i++) {
            sums[i][0] += a[i * across + k * along] * left;
            sums[i][1] += a[i * across + k * along] * right;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < HIGH; i++)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++)
            *(NAME(vec) *)(c + i * stride + j * WIDE) = sums[i][j];
}

/* ``line``: the row stride of a if it was left in place, or 0 if a is a panel. */
TARGET static void NAME(tile)(int64_t depth, const float *a, int64_t line, const float *b, const float *bias, int add,
                              float *c, int64_t stride) {
    if (line)
        NAME(sums)(depth, a, line, 1, b, bias, add, c, stride);
    else
        NAME(sums)(depth, a, 1, HIGH, b, bias, add, c, stride);
}

static const struct kind NAME(kind) = {32 * WIDE, HIGH, 2 * WIDE, NAME(pack_rows), NAME(pack_columns), NAME(tile)};

#undef NAME
#undef TARGET
#undef WIDE
#undef HIGH
