/* The head and the loss as one training operator: the logits of a whole batch, the largest tensor of a small model,
   never exist. */

#include <math.h>

#include "gemm.h"
#include "operator.h"
#include "rows.h"
#include "scratch.h"
#include "thread_pool.h"

struct loss {
    float *logits; /* (rows, vocabulary): become the gradient of the logits */
    const int32_t *labels;
    const float *weights;
    float *losses; /* weight · −log p(label) of each row */
    int64_t vocabulary;
};

static void cross_entropy(const struct loss *l, int64_t row) {
    float *logits = l->logits + row * l->vocabulary, weight = l->weights[row];
    int64_t label = l->labels[row];
    int known = label >= 0 && label < l->vocabulary;
    float chosen = known ? logits[label] : NAN;
    struct softmax made = softmax(logits, l->vocabulary, 1.0f, weight);
    if (known)
        logits[label] -= weight;
    l->losses[row] = weight * (logf(made.sum) - (chosen - made.highest));
}

static void cross_entropy_rows(void *context, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
        cross_entropy(context, row);
}

enum { LOSS_ROWS = 576 }; /* whose logits exist at the same time */

static int head_loss(void **arrays, int64_t **shapes, int gradients) {
    int64_t rows = shapes[0][0], hidden = shapes[0][1], vocabulary = shapes[1][0];
    float *logits = aligned_floats(smaller(LOSS_ROWS, rows) * (vocabulary + 1));
    float *losses = logits + smaller(LOSS_ROWS, rows) * vocabulary;
    double total = 0;
    if (!logits)
        return 1;
    for (int64_t first = 0; first < rows; first += LOSS_ROWS) {
        int64_t count = smaller(LOSS_ROWS, rows - first);
        const float *x = IN(0) + first * hidden, *table = IN(1);
        gemm(product(0, 1, count, vocabulary, hidden, x, hidden, table, hidden, logits, vocabulary));
        struct loss l = {logits, INTEGERS(2) + first, IN(3) + first, losses, vocabulary};
        parallel_for(cross_entropy_rows, &l, count, 1);
        for (int64_t row = 0; row < count; row++)
            total += losses[row];
        if (!gradients)
            continue;
        gemm(product(0, 0, count, hidden, vocabulary, logits, vocabulary, table, hidden, OUT(5) + first * hidden,
                              hidden));
        struct product of_table = product(1, 0, vocabulary, hidden, count, logits, vocabulary, x, hidden, OUT(6),
                                          hidden);
        of_table.add = first > 0;
        gemm(of_table);
    }
    *OUT(4) = (float)total;
    free(logits);
    return 0;
}

/* hidden (rows, hidden), table (vocabulary, hidden), labels, weights (rows,) → Σ weight · −log p(label), (1,); and with
   gradients: those of hidden and table. A label outside the vocabulary makes the loss NaN. */
OPERATOR(head_loss_value) { return head_loss(arrays, shapes, 0); }
OPERATOR(head_loss_gradients) { return head_loss(arrays, shapes, 1); }
