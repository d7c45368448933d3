/* Words to ids: a table that remembers the ids of every word met, and joins them for a text.
 *
 * Filled from Python, which asks SentencePiece once for each new word; looking up is all that happens here. Plain C99.
 * One table is used by one call at a time (the caller holds a lock); nothing is shared between tables.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { uint64_t hash; uint32_t text_at, text_length, ids_at, ids_length; } Entry; /* hash 0: free */

typedef struct {
    Entry *entries;
    uint64_t mask, count;
    uint32_t *texts; /* the words, one after the other */
    uint64_t texts_used, texts_room;
    int32_t *ids;    /* their ids, one after the other */
    uint64_t ids_used, ids_room;
} WordIds;

static uint64_t hash_of(const uint32_t *word, uint64_t length) {
    uint64_t h = 0x9E3779B97F4A7C15ull + length;
    for (uint64_t i = 0; i < length; i++) { h = (h ^ word[i]) * 0xBF58476D1CE4E5B9ull; h ^= h >> 29; }
    h ^= h >> 32;
    return h ? h : 1;
}

void wordids_free(WordIds *t) {
    if (!t) return;
    free(t->entries); free(t->texts); free(t->ids); free(t);
}

WordIds *wordids_new(void) {
    WordIds *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    t->mask = (1 << 12) - 1;
    t->entries = calloc(t->mask + 1, sizeof *t->entries);
    if (!t->entries) { wordids_free(t); return NULL; }
    return t;
}

static Entry *find_entry(const WordIds *t, const uint32_t *word, uint64_t length, uint64_t hash) {
    uint64_t at = hash & t->mask;
    for (;; at = (at + 1) & t->mask) {
        Entry *e = &t->entries[at];
        if (!e->hash) return e;
        if (e->hash == hash && e->text_length == length
            && !memcmp(t->texts + e->text_at, word, length * sizeof *word)) return e;
    }
}

static int grow(WordIds *t) {
    uint64_t size = 2 * (t->mask + 1);
    Entry *wider = calloc(size, sizeof *wider);
    if (!wider) return 0;
    for (uint64_t i = 0; i <= t->mask; i++) {
        if (!t->entries[i].hash) continue;
        uint64_t at = t->entries[i].hash & (size - 1);
        while (wider[at].hash) at = (at + 1) & (size - 1);
        wider[at] = t->entries[i];
    }
    free(t->entries);
    t->entries = wider;
    t->mask = size - 1;
    return 1;
}

/* Room for `more` elements of 4 bytes behind `used`; 0 when memory is short or 32-bit places run out. */
static int reserve(void **array, uint64_t *room, uint64_t used, uint64_t more) {
    if (used + more > UINT32_MAX) return 0;
    if (used + more <= *room) return 1;
    uint64_t wanted = 2 * (used + more);
    void *wider = realloc(*array, wanted * 4);
    if (!wider) return 0;
    *array = wider;
    *room = wanted;
    return 1;
}

/* Remember `count` words: their characters one after the other with the end of each, and their ids likewise.
 * Returns the number of words now in the table, -1 when memory is short. */
int64_t wordids_add(WordIds *t, const uint32_t *texts, const int64_t *text_ends, const int32_t *ids,
                    const int64_t *id_ends, int64_t count) {
    for (int64_t i = 0, text = 0, id = 0; i < count; text = text_ends[i], id = id_ends[i], i++) {
        uint64_t length = (uint64_t)(text_ends[i] - text), number = (uint64_t)(id_ends[i] - id);
        uint64_t hash = hash_of(texts + text, length);
        if (find_entry(t, texts + text, length, hash)->hash) continue;
        if (t->count * 3 > t->mask * 2 && !grow(t)) return -1;
        if (!reserve((void **)&t->texts, &t->texts_room, t->texts_used, length)
            || !reserve((void **)&t->ids, &t->ids_room, t->ids_used, number)) return -1;
        Entry *e = find_entry(t, texts + text, length, hash);
        *e = (Entry){hash, (uint32_t)t->texts_used, (uint32_t)length, (uint32_t)t->ids_used, (uint32_t)number};
        memcpy(t->texts + t->texts_used, texts + text, length * sizeof *texts);
        if (number) memcpy(t->ids + t->ids_used, ids + id, number * sizeof *ids);
        t->texts_used += length; t->ids_used += number; t->count++;
    }
    return (int64_t)t->count;
}

/* Ids of all words of a text, cut at `ends`. Writes at most `room` ids to out and returns how many there are; words
 * that the table lacks add none and are listed, by their place, in missing[0 .. *missing_count). */
int64_t wordids_lookup(const WordIds *t, const uint32_t *text, const int32_t *ends, int64_t words,
                       int32_t *out, int64_t room, int32_t *missing, int64_t *missing_count) {
    int64_t used = 0;
    *missing_count = 0;
    for (int64_t i = 0, begin = 0; i < words; begin = ends[i++]) {
        uint64_t length = (uint64_t)(ends[i] - begin);
        const Entry *e = find_entry(t, text + begin, length, hash_of(text + begin, length));
        if (!e->hash) { missing[(*missing_count)++] = (int32_t)i; continue; }
        if (used + e->ids_length <= room)
            for (uint32_t k = 0; k < e->ids_length; k++) out[used + k] = t->ids[e->ids_at + k];
        used += e->ids_length;
    }
    return used;
}
