/* Whether dropout keeps an element: a hash of where it is, so that no mask lies in memory. Inlined, for loops that
   become vectors. */

#pragma once

#include "common.h"

struct dropout { /* ops/dropout.py says what the numbers are */
    const int32_t *rows, *columns; /* keys; no rows: nothing is dropped */
    int32_t threshold;
    float scale; /* of what is kept */
};

/* What element (row, column) is multiplied with: 0 or the scale. */
INLINE float keeping(uint32_t row, uint32_t column, int32_t threshold, float scale) {
    uint32_t value = (row ^ column) * 0x7FEB352Du;
    value = (value ^ value >> 16) * 0x846CA68Bu;
    return (int32_t)(value ^ value >> 16) >= threshold ? scale : 0.0f;
}
