/* The threads that all kernels share; thread_pool.c says why they are not OpenMP. */

#pragma once

#include "common.h"

/* Processes the items first … last - 1, at most ``grain`` of them; with a grain of 1 only the item ``first``. */
typedef void (*range_work)(void *context, int64_t first, int64_t last);

/* Start threads until there are at least this many, including the caller. */
void grow_pool(int64_t threads);

int64_t pool_size(void);

/* work(context, first, last) over the items 0 … count - 1, ``grain`` at a time; returns when all are done. */
void parallel_for(range_work work, void *context, int64_t count, int64_t grain);
