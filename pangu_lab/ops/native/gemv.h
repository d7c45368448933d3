/* Products of a few rows with weights that are read once; gemv.c says how. */

#ifndef PANGU_LAB_GEMV_H
#define PANGU_LAB_GEMV_H

#include "network.h"

/* y (count, out) = activation(x (count, in) · weightᵀ + bias), or y += that; ``after`` says which. */
void gemv(const struct matrix *m, const float *x, float *y, int64_t count, int after);

#endif
