/* The operations of a training step, forward and backward, as MindSpore calls custom operators of the kind "aot":

       int name(int count, void **arrays, int *dimensions, int64_t **shapes, const char **types, void *, void *)

   ``arrays`` are the inputs and then the outputs, all fp32 except positions, labels and keys (int32). Work between
   products is done in one pass over memory, and recomputes what it needs rather than keeping it. Every sum is added in
   an order that does not depend on which thread does what, so a repeated step gives the same bits. NaN and infinity
   propagate as in IEEE arithmetic; denormals are kept. */

#pragma once

#include "common.h"

#define OPERATOR(name) \
    EXPORT int name(int count, void **arrays, int *dimensions, int64_t **shapes, const char **types, void *stream, \
                    void *extra)
#define IN(i) ((const float *)arrays[i])
#define INTEGERS(i) ((const int32_t *)arrays[i])
#define OUT(i) ((float *)arrays[i])
