/* Text to words, exactly as jieba cuts (default mode, unknown words by the character model).
 *
 * The algorithm of segment.py in C: a table of dictionary beginnings instead of Python's dictionary, everything else
 * the same, sums in the same order and ties to the same side, so both give the same words to the last bit. All
 * numbers come from Python (logarithms included); nothing here computes more than sums and comparisons of doubles.
 * Plain C99, no Python headers, no global state: tables are read-only after segmenter_new, calls may run in parallel.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define NEVER (-3.14e100)
#define NO_WORD (-1.0e300) /* a beginning that is no word itself; real scores are above -20 */
enum { B, E, M, S };

typedef struct { uint64_t key; double score; uint32_t node; uint32_t used; } Slot;

typedef struct {
    Slot *slots;             /* (node of the beginning, next character) -> node and score of the longer beginning */
    uint64_t mask;
    uint32_t nodes;
    double unknown;          /* score of a character the dictionary does not know */
    double start[4];
    double step[16];         /* step[from * 4 + to] */
    double *emissions;       /* emissions[c * 4 + state] for c below EMITTING */
} Segmenter;

#define EMITTING 0x10000u

static int is_han(uint32_t c) { return c >= 0x4E00 && c <= 0x9FD5; }
static int is_digit(uint32_t c) { return c >= '0' && c <= '9'; }
static int is_latin(uint32_t c) { return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
static int in_run(uint32_t c) {
    return is_han(c) || is_latin(c) || c == '+' || c == '#' || c == '&' || c == '.' || c == '_' || c == '%' || c == '-';
}

static uint64_t mix(uint64_t x) {
    x ^= x >> 31; x *= 0x9E3779B97F4A7C15ull; x ^= x >> 29; x *= 0xBF58476D1CE4E5B9ull;
    return x ^ (x >> 32);
}

static Slot *find(const Segmenter *g, uint32_t node, uint32_t character) {
    uint64_t key = ((uint64_t)node << 21) | character;
    uint64_t at = mix(key) & g->mask;
    while (g->slots[at].used && g->slots[at].key != key) at = (at + 1) & g->mask;
    return &g->slots[at];
}

void segmenter_free(Segmenter *g) {
    if (!g) return;
    free(g->slots); free(g->emissions); free(g);
}

/* Add one word; returns 0 when the table is full. */
static int add_word(Segmenter *g, const uint32_t *word, int64_t length, double score) {
    uint32_t node = 0;
    for (int64_t i = 0; i < length; i++) {
        Slot *slot = find(g, node, word[i]);
        if (!slot->used) {
            if ((uint64_t)g->nodes * 4 > g->mask * 3) return 0;
            slot->used = 1; slot->key = ((uint64_t)node << 21) | word[i];
            slot->score = NO_WORD; slot->node = ++g->nodes;
        }
        if (i == length - 1) slot->score = score;
        node = slot->node;
    }
    return 1;
}

/* Read jieba's dictionary (lines of "word frequency kind" in UTF-8). Fills words (UTF-32, one after the other), ends
 * (where each word ends in it) and counts; there must be room for one of each a byte. Returns the number of words. */
int64_t dictionary_parse(const uint8_t *bytes, int64_t size, uint32_t *words, int64_t *ends, int64_t *counts) {
    int64_t number = 0, used = 0;
    for (int64_t i = 0; i < size; i++) {
        int64_t begin = used, count = 0;
        for (; i < size && bytes[i] != ' ' && bytes[i] != '\n'; i++) {
            uint8_t b = bytes[i];
            if (b < 0x80) words[used++] = b;
            else if (b >= 0xC0) words[used++] = b & (b < 0xE0 ? 0x1F : b < 0xF0 ? 0x0F : 0x07);
            else if (used > begin) words[used - 1] = words[used - 1] << 6 | (b & 0x3F);
        }
        if (i < size && bytes[i] == ' ')
            for (i++; i < size && is_digit(bytes[i]); i++) count = count * 10 + (bytes[i] - '0');
        while (i < size && bytes[i] != '\n') i++;
        if (used > begin) { ends[number] = used; counts[number++] = count; }
    }
    return number;
}

/* words: all words one after the other as UTF-32; ends: where each ends in it; scores: NO_WORD for frequency 0.
 * A word given twice keeps its last score. emissions: EMITTING * 4 numbers. NULL when memory is short. */
Segmenter *segmenter_new(const uint32_t *words, const int64_t *ends, const double *scores, int64_t count,
                         double unknown, const double *start, const double *step, const double *emissions) {
    Segmenter *g = calloc(1, sizeof *g);
    if (!g) return NULL;
    uint64_t size = 1 << 16;
    while (size < (uint64_t)ends[count - 1]) size *= 2; /* no more beginnings than characters; mostly far fewer */
    g->mask = size - 1;
    g->slots = calloc(size, sizeof *g->slots);
    g->emissions = malloc(EMITTING * 4 * sizeof *g->emissions);
    if (!g->slots || !g->emissions) { segmenter_free(g); return NULL; }
    int64_t begin = 0;
    for (int64_t i = 0; i < count; begin = ends[i++])
        if (!add_word(g, words + begin, ends[i] - begin, scores[i])) { segmenter_free(g); return NULL; }
    g->unknown = unknown;
    memcpy(g->start, start, sizeof g->start);
    memcpy(g->step, step, sizeof g->step);
    memcpy(g->emissions, emissions, EMITTING * 4 * sizeof *emissions);
    return g;
}

/* Working memory of one call, as long as its text; ends of words go to out[0..words). */
typedef struct {
    const Segmenter *g;
    const uint32_t *text;
    double *value;
    int32_t *word_end;
    uint8_t *back;
    int32_t *out;
    int64_t words;
} Work;

static void emit_end(Work *w, int64_t end) { w->out[w->words++] = (int32_t)end; }

/* c is Han, so below EMITTING */
static const double *emission(const Segmenter *g, uint32_t c) { return g->emissions + 4 * (size_t)c; }

/* Words of text[begin, end), all Han, by the likeliest path of states. */
static void viterbi(Work *w, int64_t begin, int64_t end) {
    const double *t = w->g->step, *e = emission(w->g, w->text[begin]);
    double v[4];
    for (int s = 0; s < 4; s++) v[s] = w->g->start[s] + e[s];
    for (int64_t i = begin + 1; i < end; i++) {
        e = emission(w->g, w->text[i]);
        double b1 = v[E] + t[E * 4 + B] + e[B], b2 = v[S] + t[S * 4 + B] + e[B];
        double e1 = v[B] + t[B * 4 + E] + e[E], e2 = v[M] + t[M * 4 + E] + e[E];
        double m1 = v[B] + t[B * 4 + M] + e[M], m2 = v[M] + t[M * 4 + M] + e[M];
        double s1 = v[E] + t[E * 4 + S] + e[S], s2 = v[S] + t[S * 4 + S] + e[S];
        w->back[i] = (uint8_t)((b2 >= b1) | (e2 >= e1) << 1 | (m2 >= m1) << 2 | (s2 >= s1) << 3);
        v[B] = b2 >= b1 ? b2 : b1; v[E] = e2 >= e1 ? e2 : e1;
        v[M] = m2 >= m1 ? m2 : m1; v[S] = s2 >= s1 ? s2 : s1;
    }
    static const uint8_t before[4][2] = {{E, S}, {B, M}, {B, M}, {E, S}};
    int state = v[S] >= v[E] ? S : E;
    for (int64_t i = end - 1; i > begin; i--) { /* from the last character: mark where words end */
        int previous = before[state][(w->back[i] >> state) & 1];
        w->back[i] = previous == E || previous == S;
        state = previous;
    }
    for (int64_t i = begin + 1; i < end; i++) if (w->back[i]) emit_end(w, i);
    emit_end(w, end);
}

/* End of letters and digits, then "." and digits, then "%": what jieba keeps together in a run it does not know. */
static int64_t latin_end(const uint32_t *text, int64_t i, int64_t end) {
    while (i < end && is_latin(text[i])) i++;
    if (i + 1 < end && text[i] == '.' && is_digit(text[i + 1])) {
        i += 2;
        while (i < end && is_digit(text[i])) i++;
    }
    if (i < end && text[i] == '%') i++;
    return i;
}

/* Words of a run for which the dictionary had single characters only. */
static void singles(Work *w, int64_t begin, int64_t end) {
    if (end - begin == 1) { emit_end(w, end); return; }
    uint32_t node = 0;
    double score = NO_WORD;
    for (int64_t i = begin; i < end; i++) {
        const Slot *slot = find(w->g, node, w->text[i]);
        if (!slot->used) { score = NO_WORD; break; }
        node = slot->node; score = slot->score;
    }
    if (score != NO_WORD) { /* a known word that lost against its characters stays apart */
        for (int64_t i = begin; i < end; i++) emit_end(w, i + 1);
        return;
    }
    while (begin < end) {
        int64_t stop = begin;
        if (is_han(w->text[begin])) {
            while (stop < end && is_han(w->text[stop])) stop++;
            viterbi(w, begin, stop);
        } else {
            if (is_latin(w->text[begin])) stop = latin_end(w->text, begin, end);
            else while (stop < end && !is_han(w->text[stop]) && !is_latin(w->text[stop])) stop++;
            emit_end(w, stop);
        }
        begin = stop;
    }
}

/* Words of a run of dictionary characters: best path backwards, then forwards along it. */
static void cut_run(Work *w, int64_t begin, int64_t end) {
    if (end - begin == 1) { emit_end(w, end); return; }
    w->value[end] = 0.0;
    for (int64_t i = end - 1; i >= begin; i--) {
        uint32_t node = 0;
        int found = 0;
        double best = 0.0;
        int64_t best_end = i + 1;
        for (int64_t j = i; j < end; j++) {
            const Slot *slot = find(w->g, node, w->text[j]);
            if (!slot->used) break;
            node = slot->node;
            if (slot->score == NO_WORD) continue;
            double value = slot->score + w->value[j + 1];
            if (!found || value >= best) { best = value; best_end = j + 1; found = 1; }
        }
        w->value[i] = found ? best : w->g->unknown + w->value[i + 1];
        w->word_end[i] = (int32_t)best_end;
    }
    int64_t single = begin;
    for (int64_t i = begin; i < end;) {
        int64_t stop = w->word_end[i];
        if (stop - i > 1) {
            if (single < i) singles(w, single, i);
            emit_end(w, stop);
            single = stop;
        }
        i = stop;
    }
    if (single < end) singles(w, single, end);
}

/* Cut text (UTF-32, fewer than 2^31 characters); out has room for one end a character. Returns the number of words,
 * -1 when memory is short. */
int64_t segmenter_cut(const Segmenter *g, const uint32_t *text, int64_t length, int32_t *out) {
    Work w = {g, text, NULL, NULL, NULL, out, 0};
    w.value = malloc(((size_t)length + 1) * sizeof *w.value);
    w.word_end = malloc(((size_t)length + 1) * sizeof *w.word_end);
    w.back = malloc((size_t)length + 1);
    if (w.value && w.word_end && w.back) {
        for (int64_t i = 0; i < length;) {
            int64_t stop = i;
            while (stop < length && in_run(text[stop])) stop++;
            if (stop > i) cut_run(&w, i, stop);
            else {
                stop = i + (text[i] == '\r' && i + 1 < length && text[i + 1] == '\n' ? 2 : 1);
                emit_end(&w, stop);
            }
            i = stop;
        }
    } else w.words = -1;
    free(w.value); free(w.word_end); free(w.back);
    return w.words;
}
