/* The gradient of a table that is used twice, as word embedding and as head: a training operator. */

#include <string.h>

#include "operator.h"
#include "thread_pool.h"

struct tied {
    const int32_t *ids;
    const float *rows, *of_head;
    float *sums;
    int64_t count, width;
};

/* Per work item; they stay in the second-level cache until the gradients of the looked-up rows are added. */
enum { TABLE_ROWS = 64 };

static void sum_rows_of_table(void *context, int64_t first, int64_t last) {
    const struct tied *t = context;
    int64_t rows = last - first, width = t->width;
    memcpy(t->sums + first * width, t->of_head + first * width, rows * width * sizeof(float));
    for (int64_t i = 0; i < t->count; i++) {
        int64_t row = t->ids[i] - first;
        if (row < 0 || row >= rows)
            continue;
        float *restrict sum = t->sums + (first + row) * width;
        const float *restrict x = t->rows + i * width;
        for (int64_t column = 0; column < width; column++)
            sum[column] += x[column];
    }
}

/* ids (rows,), gradients of the rows looked up for them (rows, hidden) and of the table from the head (vocabulary,
   hidden) → gradient of the table. Gradients of ids outside the vocabulary are ignored. */
OPERATOR(tied_backward) {
    struct tied t = {INTEGERS(0), IN(1), IN(2), OUT(3), shapes[0][0], shapes[2][1]};
    parallel_for(sum_rows_of_table, &t, shapes[2][0], TABLE_ROWS);
    return 0;
}
