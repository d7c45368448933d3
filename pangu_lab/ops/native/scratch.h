/* Memory for what a kernel needs while it works. */

#pragma once

#include <stdlib.h>

#include "common.h"

/* From an address that vectors like: a compiler may take the numbers before the first such address one by one, and
   then a sum's order, and its last bit, would depend on where the system put the memory. Freed by ``free``; NULL
   without memory. */
float *aligned_floats(int64_t count);

enum { OF_SMALL_GEMM, OF_GEMM, OF_ATTENTION };

/* This thread's own memory for one of these; what it held before is lost. */
float *thread_scratch(int which, int64_t floats);
