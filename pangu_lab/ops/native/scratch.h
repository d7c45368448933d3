/* Memory that a kernel needs while it runs. */

#pragma once

#include <stdlib.h>

#include "common.h"

/* Aligned for vectors: before the first aligned address a compiler may handle numbers one by one, and then a sum's
   order, and its last bit, would depend on where the system put the memory. Freed by ``free``; NULL if memory runs
   out. */
float *aligned_floats(int64_t count);

enum { OF_SMALL_GEMM, OF_GEMM, OF_ATTENTION, OF_WIDENED, KINDS_OF_SCRATCH };

/* This thread's own memory for one of these; its earlier content is lost. */
float *thread_scratch(int which, int64_t floats);
