/* Whether dropout keeps an element: a hash of its coordinates, so that no mask is stored. Inlined, for vectorised
   loops. */

#pragma once

#include "common.h"

struct dropout { /* ops/dropout.py explains the numbers */
    const int32_t *rows, *columns; /* keys; rows NULL: nothing is dropped */
    int32_t threshold;
    float scale; /* of kept elements */
};

/* The factor of element (row, column): 0 or the scale. */
INLINE float keeping(uint32_t row, uint32_t column, int32_t threshold, float scale) {
    uint32_t value = (row ^ column) * 0x7FEB352Du;
    value = (value ^ value >> 16) * 0x846CA68Bu;
    return (int32_t)(value ^ value >> 16) >= threshold ? scale : 0.0f;
}
