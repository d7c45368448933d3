/* Products of fp32 matrices; gemm.c explains how. */

#pragma once

#include <stddef.h>

#include "common.h"

/* c (m, n) = a (m, k) · b (k, n), plus c with ``add``, else plus bias (n,) in each row if there is one. A matrix's
   element (row, column) lies at row · rows + column · columns; one of the two strides is 1; c is stored by rows. */
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

/* c (m, n) = a · b, with line strides ``a_line`` and ``b_line``; a as (k, m) if ``ta``, b as (n, k) if ``tb``. */
struct product product(int ta, int tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t a_line, const float *b,
                       int64_t b_line, float *c, int64_t c_line);

/* By all threads. */
void gemm(struct product p);

/* By this thread only; for small products. */
void small_gemm(struct product p);

/* to (depth, lines) = the transpose of from (lines, depth); ``to_line`` and ``from_line`` are the line strides. */
void transpose(float *to, int64_t to_line, const float *from, int64_t from_line, int64_t lines, int64_t depth);
