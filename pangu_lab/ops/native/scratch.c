/* Scratch memory: blocks for one call, and blocks that each thread keeps from call to call. */

#include "scratch.h"

float *aligned_floats(int64_t count) { return aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64); }

float *thread_scratch(int which, int64_t floats) {
    static _Thread_local float *memory[KINDS_OF_SCRATCH];
    static _Thread_local int64_t size[KINDS_OF_SCRATCH];
    if (floats > size[which]) {
        free(memory[which]);
        memory[which] = aligned_floats(floats);
        size[which] = memory[which] ? floats : 0;
        if (!memory[which])
            abort(); /* as everywhere else when memory runs out */
    }
    return memory[which];
}
