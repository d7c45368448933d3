/* The training operators built on a product: linear layers, alone or after an activation, and their gradients. */

#include <string.h>

#include "gemm.h"
#include "operator.h"
#include "rows.h"
#include "scratch.h"
#include "thread_pool.h"

struct columns {
    const float *x;
    float *sums;
    int64_t rows, width;
};

enum { STRIPE = 64 };

CLONES static void sum_stripe(void *context, int64_t first, int64_t last) {
    const struct columns *c = context;
    int64_t count = last - first;
    float sums[STRIPE] = {0};
    for (int64_t row = 0; row < c->rows; row++)
        for (int64_t i = 0; i < count; i++)
            sums[i] += c->x[row * c->width + first + i];
    memcpy(c->sums + first, sums, count * sizeof *sums);
}

static void sum_of_rows(const float *x, float *sums, int64_t rows, int64_t width) {
    parallel_for(sum_stripe, &(struct columns){x, sums, rows, width}, width, STRIPE);
}

static int linear(int transposed, int biased, void **arrays, int64_t **shapes) {
    int64_t rows = shapes[0][0], in = shapes[0][1], out = shapes[1][transposed ? 0 : 1];
    struct product p = product(0, transposed, rows, out, in, IN(0), in, IN(1), transposed ? in : out, OUT(2 + biased),
                               out);
    p.bias = biased ? IN(2) : NULL;
    gemm(p);
    return 0;
}

static int linear_backward(int transposed, int biased, void **arrays, int64_t **shapes) {
    int64_t rows = shapes[0][0], in = shapes[0][1], out = shapes[2][1];
    const float *x = IN(0), *weight = IN(1), *dy = IN(2);
    gemm(product(0, !transposed, rows, in, out, dy, out, weight, transposed ? in : out, OUT(3), in));
    if (transposed)
        gemm(product(1, 0, out, in, rows, dy, out, x, in, OUT(4), in));
    else
        gemm(product(1, 0, in, out, rows, x, in, dy, out, OUT(4), out));
    if (biased)
        sum_of_rows(dy, OUT(5), rows, out);
    return 0;
}

/* x (rows, in), weight (in, out) or transposed (out, in), bias (out,) → (rows, out) */
OPERATOR(linear_plain) { return linear(0, count == 4, arrays, shapes); }
OPERATOR(linear_transposed) { return linear(1, count == 4, arrays, shapes); }
/* x, weight, dy → dx, dweight, and dbias if there is an output for it */
OPERATOR(linear_plain_backward) { return linear_backward(0, count == 6, arrays, shapes); }
OPERATOR(linear_transposed_backward) { return linear_backward(1, count == 6, arrays, shapes); }

/* A product of activated rows. The activation's output is recomputed in the backward pass instead of kept: a layer
   keeps a quarter less. */
static int linear_after(int kind, int biased, void **arrays, int64_t **shapes) {
    int64_t rows = shapes[0][0], in = shapes[0][1], out = shapes[1][1];
    float *inner = aligned_floats(rows * in);
    if (!inner)
        return 1;
    activate_all(IN(0), NULL, inner, rows * in, kind);
    struct product p = product(0, 0, rows, out, in, inner, in, IN(1), out, OUT(2 + biased), out);
    p.bias = biased ? IN(2) : NULL;
    gemm(p);
    free(inner);
    return 0;
}

static int linear_after_backward(int kind, int biased, void **arrays, int64_t **shapes) {
    int64_t rows = shapes[0][0], in = shapes[0][1], out = shapes[2][1];
    const float *x = IN(0), *weight = IN(1), *dy = IN(2);
    float *inner = aligned_floats(rows * in);
    if (!inner)
        return 1;
    activate_all(x, NULL, inner, rows * in, kind);
    gemm(product(1, 0, in, out, rows, inner, in, dy, out, OUT(4), out));
    gemm(product(0, 1, rows, in, out, dy, out, weight, out, inner, in));
    activate_all(x, inner, OUT(3), rows * in, kind);
    if (biased)
        sum_of_rows(dy, OUT(5), rows, out);
    free(inner);
    return 0;
}

/* x (rows, in) before the activation, weight (in, out), bias (out,) → (rows, out); and x, weight, dy → as above */
OPERATOR(linear_after_gelu) { return linear_after(TANH_GELU, count == 4, arrays, shapes); }
OPERATOR(linear_after_gelu_backward) { return linear_after_backward(TANH_GELU, count == 6, arrays, shapes); }
OPERATOR(linear_after_gelu_erf) { return linear_after(ERF_GELU, count == 4, arrays, shapes); }
OPERATOR(linear_after_gelu_erf_backward) { return linear_after_backward(ERF_GELU, count == 6, arrays, shapes); }
OPERATOR(linear_after_fast_gelu) { return linear_after(FAST_GELU, count == 4, arrays, shapes); }
OPERATOR(linear_after_fast_gelu_backward) {
    return linear_after_backward(FAST_GELU, count == 6, arrays, shapes);
}
