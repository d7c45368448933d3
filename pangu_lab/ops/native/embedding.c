/* The gradient of a table that has two uses, the word embedding and the head, as a training operator. */

#include <string.h>

#include "operator.h"
#include "thread_pool.h"

struct tied {
    const int32_t *ids;
    const float *rows, *of_head;
    float *sums;
    int64_t count, width;
};

/* That a thread takes at once; they stay in the second-level cache until what was looked up is added. */
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

/* ids (rows,), gradients of the rows that were looked up for them (rows, hidden) and of the table as the head has it
   (vocabulary, hidden) → gradient of the table. What an id outside the vocabulary was given goes nowhere. */
OPERATOR(tied_backward) {
    struct tied t = {INTEGERS(0), IN(1), IN(2), OUT(3), shapes[0][0], shapes[2][1]};
    parallel_for(sum_rows_of_table, &t, shapes[2][0], TABLE_ROWS);
    return 0;
}
