/* The operations of a training step, forward and backward, as MindSpore calls custom operators of the kind "aot":

       int name(int count, void **arrays, int *dimensions, int64_t **shapes, const char **types, void *, void *)

   ``arrays`` are the inputs and then the outputs, all of them fp32 but for positions, labels and keys (int32). What
   lies between products is done in one pass over memory, with what it needs computed again rather than kept. Every
   sum is added in an order that does not depend on which thread does what, so a step repeated gives the same bits.
   NaN and infinity go through as in IEEE arithmetic; denormals are kept. */

#pragma once

#include "common.h"

#define OPERATOR(name) \
    EXPORT int name(int count, void **arrays, int *dimensions, int64_t **shapes, const char **types, void *stream, \
                    void *extra)
#define IN(i) ((const float *)arrays[i])
#define INTEGERS(i) ((const int32_t *)arrays[i])
#define OUT(i) ((float *)arrays[i])
