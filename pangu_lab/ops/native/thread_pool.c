/* A small thread pool: its threads and the calling thread take items of one job, one after the other.

   Written for machines that others compute on too (MindSpore's own pool, other ranks, other users): the caller works
   through the items itself and waits only for items that a thread has begun, never for a thread that the system has
   not scheduled. OpenMP waits for all its threads at the end of every loop: beside other busy programs on two
   processors a decode step of 60 loops, some 50 ms alone, was seen to take 0.3 to 1.1 s with it. A caller that comes
   while another's job is running works alone: MindSpore may run two operators at once.

   A forked child has none of these threads, and may have been made while one of them held the lock or was counted as
   active: 1 to 2 % of children hung for ever. So the child begins with an empty pool, and works alone. */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "thread_pool.h"

static struct {
    range_work work;
    void *context;
    int64_t count, grain, threads;
    atomic_llong next;
    atomic_int open, active, sleeping;
    pthread_mutex_t caller, lock;
    pthread_cond_t called;
} pool = {.caller = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .called = PTHREAD_COND_INITIALIZER,
          .threads = 1};

enum { SPIN_POLLS = 4000 }; /* polls for new work, some 50 µs in all, before a thread sleeps */

static void take_ranges(void) {
    for (int64_t first; (first = atomic_fetch_add(&pool.next, pool.grain)) < pool.count;)
        pool.work(pool.context, first, smaller(first + pool.grain, pool.count));
}

static void wait_for_call(void) {
    for (int look = 0; look < SPIN_POLLS; look++) {
        if (atomic_load(&pool.open))
            return;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.sleeping, 1);
    while (!atomic_load(&pool.open))
        pthread_cond_wait(&pool.called, &pool.lock);
    atomic_fetch_sub(&pool.sleeping, 1);
    pthread_mutex_unlock(&pool.lock);
}

static void *helper(void *unused) {
    for (;;) {
        wait_for_call();
        /* count first, then check again: the closing thread sees the count, or this thread sees the job closed */
        atomic_fetch_add(&pool.active, 1);
        if (atomic_load(&pool.open))
            take_ranges();
        atomic_fetch_sub(&pool.active, 1);
        if (atomic_load(&pool.open) && atomic_load(&pool.next) >= pool.count)
            sched_yield();
    }
    return unused;
}

static void begin_anew_in_child(void) {
    pool.threads = 1;
    atomic_store(&pool.open, 0);
    atomic_store(&pool.active, 0);
    atomic_store(&pool.sleeping, 0);
    pthread_mutex_init(&pool.caller, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.called, NULL);
}

void grow_pool(int64_t threads) {
    static atomic_int asked;
    if (!atomic_exchange(&asked, 1))
        pthread_atfork(NULL, NULL, begin_anew_in_child);
    for (; pool.threads < threads; pool.threads++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, helper, NULL))
            return;
        pthread_detach(thread);
    }
}

int64_t pool_size(void) { return pool.threads; }

static void wake_sleepers(void) {
    if (!atomic_load(&pool.sleeping))
        return;
    pthread_mutex_lock(&pool.lock);
    pthread_cond_broadcast(&pool.called);
    pthread_mutex_unlock(&pool.lock);
}

void parallel_for(range_work work, void *context, int64_t count, int64_t grain) {
    if (pool.threads == 1 || count <= grain || pthread_mutex_trylock(&pool.caller)) {
        for (int64_t first = 0; first < count; first += grain)
            work(context, first, smaller(first + grain, count));
        return;
    }
    pool.work = work, pool.context = context, pool.count = count, pool.grain = grain;
    atomic_store(&pool.next, 0);
    atomic_store(&pool.open, 1);
    wake_sleepers();
    take_ranges();
    atomic_store(&pool.open, 0);
    while (atomic_load(&pool.active))
        sched_yield();
    pthread_mutex_unlock(&pool.caller);
}
