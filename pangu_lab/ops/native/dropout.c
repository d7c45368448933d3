/* Dropout of a layer's outputs, as a training operator. */

#include "dropout.h"
#include "operator.h"
#include "thread_pool.h"

struct dropped {
    const float *x;
    float *y;
    struct dropout dropout;
    int64_t width;
};

enum { ROWS = 32 }; /* per work item */

CLONES static void drop_rows(void *context, int64_t first, int64_t last) {
    const struct dropped *d = context;
    const struct dropout *o = &d->dropout;
    for (int64_t row = first; row < last; row++) {
        const float *x = d->x + row * d->width;
        float *y = d->y + row * d->width;
        uint32_t key = o->rows[row];
        for (int64_t i = 0; i < d->width; i++)
            y[i] = x[i] * keeping(key, o->columns[i], o->threshold, o->scale);
    }
}

/* x (rows, width), keys of the rows (rows, 1), of the columns (1, width), threshold, scale (1,) → (rows, width). It
   is its own backward pass. */
OPERATOR(dropout) {
    struct dropped d = {IN(0), OUT(5), {INTEGERS(1), INTEGERS(2), *INTEGERS(3), *IN(4)}, shapes[0][1]};
    parallel_for(drop_rows, &d, shapes[0][0], ROWS);
    return 0;
}
