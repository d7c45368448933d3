/* GELU in three forms, and their derivatives: the activation of every caller, and the training operators. */

#include "operator.h"
#include "rows.h"
#include "thread_pool.h"
#include "vectors.h"

/* x · sigmoid(u(x)), u = x (linear + cubic x²): the tanh form and the quick form of GELU. */
INLINE void sigmoid_gelu(const float *x, const float *dy, float *y, int64_t count, float linear, float cubic) {
    for (int64_t i = 0; i < count; i++) {
        float square = x[i] * x[i], u = x[i] * (linear + cubic * square), s = 1.0f / (1.0f + quick_exp(-u));
        y[i] = dy ? dy[i] * (s + x[i] * s * (1.0f - s) * (linear + 3.0f * cubic * square)) : x[i] * s;
    }
}

/* x Φ(x), with the error function of Abramowitz & Stegun 7.1.26 (absolute error 1.5e-7). */
INLINE void erf_gelu(const float *x, const float *dy, float *y, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        float z = fabsf(x[i]) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * z), bell = quick_exp(-z * z);
        float tail = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t +
                      0.254829592f) * t;
        float upper = 1.0f - 0.5f * tail * bell, phi = x[i] < 0 ? 1.0f - upper : upper;
        y[i] = dy ? dy[i] * (phi + x[i] * 0.39894228f * bell) : x[i] * phi;
    }
}

CLONES static void activate_elements(const float *x, const float *dy, float *y, int64_t count, int kind) {
    if (kind == ERF_GELU)
        dy ? erf_gelu(x, dy, y, count) : erf_gelu(x, NULL, y, count);
    else if (kind == FAST_GELU)
        dy ? sigmoid_gelu(x, dy, y, count, 1.702f, 0) : sigmoid_gelu(x, NULL, y, count, 1.702f, 0);
    else
        dy ? sigmoid_gelu(x, dy, y, count, 1.5957691216f, 0.0713548163f)
           : sigmoid_gelu(x, NULL, y, count, 1.5957691216f, 0.0713548163f);
}

void activate(const float *x, const float *dy, float *y, int64_t count, int kind) {
    activate_elements(x, dy, y, count, kind);
}

struct elements {
    const float *x, *dy;
    float *y;
    int kind;
};

enum { GRAIN = 16384 }; /* numbers per work item */

static void activate_range(void *context, int64_t first, int64_t last) {
    const struct elements *e = context;
    activate(e->x + first, e->dy ? e->dy + first : NULL, e->y + first, last - first, e->kind);
}

void activate_all(const float *x, const float *dy, float *y, int64_t count, int kind) {
    parallel_for(activate_range, &(struct elements){x, dy, y, kind}, count, GRAIN);
}

static int activation(int kind, int backward, void **arrays, int *dimensions, int64_t **shapes) {
    int64_t all = 1;
    for (int i = 0; i < dimensions[0]; i++)
        all *= shapes[0][i];
    activate_all(IN(0), backward ? IN(1) : NULL, OUT(1 + backward), all, kind);
    return 0;
}

/* x → y, and x, dy → dx, of any shape */
OPERATOR(gelu) { return activation(TANH_GELU, 0, arrays, dimensions, shapes); }
OPERATOR(gelu_backward) { return activation(TANH_GELU, 1, arrays, dimensions, shapes); }
OPERATOR(gelu_erf) { return activation(ERF_GELU, 0, arrays, dimensions, shapes); }
OPERATOR(gelu_erf_backward) { return activation(ERF_GELU, 1, arrays, dimensions, shapes); }
OPERATOR(fast_gelu) { return activation(FAST_GELU, 0, arrays, dimensions, shapes); }
OPERATOR(fast_gelu_backward) { return activation(FAST_GELU, 1, arrays, dimensions, shapes); }
