/* Low-rank updates y += s B A x of linear layers (Hu et al., 2021), each in rows of its own, and their way
   back.

   An update has A [r, in] and B [out, r] in float, and adds to `out` columns of y from `column` on. The updates of
   one layer come in the order of their rows; those with the same rows follow one another. */

#include "products.h"

#define BLOCK 32 /* Rows that are worked on at once; even, so that pairs of rows stay together. */
#define COLUMNS 128
#define SUMMED 256 /* Rows that a sum over rows takes at once; even. */

typedef struct {
    int64_t start, stop, column, out, r;
    float scaling;
    const float *a, *b;
    /* Filled in here: s A x [rows, padded(r)], and the gradients of a and b. */
    const element *low;
    float *grad_a, *grad_b;
} update;

typedef struct {
    const element *x; /* [rows, in] */
    int64_t in, width;
    update *updates;
    int64_t count;
    int32_t threads;
} layer;

INLINE element rounded(float x) {
#ifdef PAIRS
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return x != x ? 0x7fc0 : (u + 0x7fff + (u >> 16 & 1)) >> 16;
#else
    return x;
#endif
}

/* Words (k, n) of a matrix B whose number (k, n) is x[k * k_step + n * n_step]; zeros beyond. */
static void pack(const float *x, int64_t k_step, int64_t n_step, int64_t k, int64_t n, word *to,
                 int64_t to_row) {
    for (int64_t i = 0; i < in_words(k) * PER_WORD; i++) {
        element *own = (element *)(to + i / PER_WORD * to_row) + i % PER_WORD;
        const int64_t count = i < k ? n : 0;
        for (int64_t j = 0; j < count; j++) own[j * PER_WORD] = rounded(x[i * k_step + j * n_step]);
        for (int64_t j = count; j < to_row; j++) own[j * PER_WORD] = 0;
    }
}

/* Updates with the same rows: their number, from the first one on. */
INLINE int64_t together(const layer *in, int64_t first) {
    int64_t end = first;
    while (end < in->count && in->updates[end].start == in->updates[first].start) end++;
    return end - first;
}

/* What a block of rows has to do: its first update, how many there are, its first row and how many. */
typedef struct {
    int64_t first, updates, row, rows;
} task;

static int64_t tasks_of(const layer *in, task *tasks) {
    int64_t count = 0;
    for (int64_t first = 0, step; first < in->count; first += step) {
        const update *one = in->updates + first;
        step = together(in, first);
        for (int64_t row = one->start; row < one->stop; row += BLOCK, count++)
            if (tasks) tasks[count] = (task){first, step, row, least(BLOCK, one->stop - row)};
    }
    return count;
}

/* How many elements of `low` the updates have. */
int64_t lowrank_low(const layer *in) {
    int64_t count = 0;
    for (int64_t i = 0; i < in->count; i++)
        count += (in->updates[i].stop - in->updates[i].start) * padded(in->updates[i].r);
    return count;
}

static void give_low(const layer *in, const element *low) {
    for (int64_t i = 0; i < in->count; i++) {
        update *one = in->updates + i;
        one->low = low;
        low += (one->stop - one->start) * padded(one->r);
    }
}

/* y: rows `width` apart; added to in place. low: update after update; written. */
void lowrank_forward(const layer *in, element *y, element *low) {
    give_low(in, low);
    const int64_t across = in_words(in->in), count = tasks_of(in, NULL);
    size_t bytes = stretch(count, sizeof(task)) + 2 * stretch(in->count, sizeof(word *));
    for (int64_t i = 0; i < in->count; i++) {
        const update *one = in->updates + i;
        bytes += stretch(across * padded(one->r), 4) + stretch(in_words(one->r) * one->out, 4);
    }
    scratch shared = scratch_of(OF_CALL, bytes);
    task *tasks = take(&shared, count, sizeof(task));
    word **a = take(&shared, in->count, sizeof(word *)), **b = take(&shared, in->count, sizeof(word *));
    for (int64_t i = 0; i < in->count; i++) {
        a[i] = take(&shared, across * padded(in->updates[i].r), 4);
        b[i] = take(&shared, in_words(in->updates[i].r) * in->updates[i].out, 4);
    }
    tasks_of(in, tasks);
#pragma omp parallel num_threads(in->threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < in->count; i++) {
            const update *one = in->updates + i;
            pack(one->a, 1, in->in, in->in, one->r, a[i], padded(one->r));
            pack(one->b, 1, one->r, one->r, one->out, b[i], one->out);
        }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < count; t++)
            for (int64_t i = tasks[t].first; i < tasks[t].first + tasks[t].updates; i++) {
                const update *one = in->updates + i;
                const int64_t row = tasks[t].row, rows = tasks[t].rows, ranks = padded(one->r);
                scratch room = scratch_of(OF_TASK, 4 * BLOCK * (ranks + COLUMNS));
                float *sums = take(&room, BLOCK * ranks, 4), *added = take(&room, BLOCK * COLUMNS, 4);
                element *own = (element *)one->low + (row - one->start) * ranks;
                multiply(rows, ranks, across, (const word *)(in->x + row * in->in), across, 1, a[i], ranks,
                         sums, ranks, 0);
                for (int64_t j = 0; j < rows * ranks; j += LANES)
                    store(own + j, load_floats(sums + j) * one->scaling);
                for (int64_t from = 0; from < one->out; from += COLUMNS) {
                    const int64_t wide = least(COLUMNS, one->out - from);
                    multiply(rows, wide, in_words(one->r), (const word *)own, ranks / PER_WORD, 1,
                             b[i] + from, one->out, added, COLUMNS, 0);
                    for (int64_t k = 0; k < rows; k++) {
                        element *to = y + (row + k) * in->width + one->column + from;
                        for (int64_t j = 0; j < wide; j += LANES)
                            store(to + j, load(to + j) + load_floats(added + k * COLUMNS + j));
                    }
                }
            }
    }
}

/* Where a call back keeps what its threads share: of every update B and A for the ways to `low` and x, the
   gradient of low, and that and low itself ready to be summed over rows. */
typedef struct {
    word *b, *a, *low, *grad_low;
    element *rows;
    int64_t low_row, grad_row;
} back;

/* The sums over rows of outer products of `low` [rows, ranks], ready, and x, in columns from `from` on. */
static void sum_over_rows(const word *low, int64_t low_row, int64_t ranks, const element *x, int64_t x_row,
                          int64_t rows, int64_t wide, word *pairs, float *to, int64_t to_row) {
    if (!rows)
        for (int64_t i = 0; i < ranks; i++) memset(to + i * to_row, 0, sizeof(float) * wide);
    for (int64_t row = 0; row < rows; row += SUMMED) {
        const int64_t count = least(SUMMED, rows - row);
        int64_t zipped_row;
        const word *other = zipped(x + row * x_row, x_row, count, wide, pairs, &zipped_row);
        multiply(ranks, wide, in_words(count), low + row / PER_WORD * low_row, 1, low_row, other, zipped_row,
                 to, to_row, row > 0);
    }
}

/* grad: of y, [rows, width]. found: written, the gradients of a and b, update after update; grad_x [rows, in],
   unless NULL, is added to, times `keep` of the same shape unless that is NULL. */
void lowrank_backward(const layer *in, const element *grad, const element *low, element *grad_x,
                      const element *keep, float *found) {
    give_low(in, low);
    for (int64_t i = 0; i < in->count; i++) {
        update *one = in->updates + i;
        one->grad_a = found;
        one->grad_b = found += one->r * in->in;
        found += one->out * one->r;
    }
    const int64_t count = tasks_of(in, NULL);
    size_t bytes = stretch(count, sizeof(task)) + stretch(in->count, sizeof(back));
    for (int64_t i = 0; i < in->count; i++) {
        const update *one = in->updates + i;
        const int64_t ranks = padded(one->r), rows = one->stop - one->start + 1;
        bytes += stretch(in_words(one->out) * ranks, 4) + stretch(in_words(one->r) * in->in, 4);
        bytes += 3 * stretch(rows * ranks, 4);
    }
    scratch shared = scratch_of(OF_CALL, bytes);
    task *tasks = take(&shared, count, sizeof(task));
    back *ways = take(&shared, in->count, sizeof(back));
    int64_t pieces = 0;
    for (int64_t i = 0; i < in->count; i++) {
        const update *one = in->updates + i;
        const int64_t ranks = padded(one->r), rows = one->stop - one->start + 1;
        ways[i].b = take(&shared, in_words(one->out) * ranks, 4);
        ways[i].a = take(&shared, in_words(one->r) * in->in, 4);
        ways[i].low = take(&shared, rows * ranks, 4);
        ways[i].grad_low = take(&shared, rows * ranks, 4);
        ways[i].rows = take(&shared, rows * ranks, 4);
        pieces += (in->in + COLUMNS - 1) / COLUMNS + (one->out + COLUMNS - 1) / COLUMNS;
    }
    tasks_of(in, tasks);
#pragma omp parallel num_threads(in->threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < in->count; i++) {
            const update *one = in->updates + i;
            pack(one->b, one->r, 1, one->out, one->r, ways[i].b, padded(one->r));
            if (grad_x) pack(one->a, in->in, 1, one->r, in->in, ways[i].a, in->in);
        }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < count; t++) {
            const int64_t row = tasks[t].row, rows = tasks[t].rows;
            for (int64_t i = tasks[t].first; i < tasks[t].first + tasks[t].updates; i++) {
                const update *one = in->updates + i;
                const int64_t ranks = padded(one->r), own = row - one->start;
                scratch room = scratch_of(OF_TASK, 4 * BLOCK * ranks);
                float *sums = take(&room, BLOCK * ranks, 4);
                element *grad_low = ways[i].rows + own * ranks;
                multiply(rows, ranks, in_words(one->out),
                         (const word *)(grad + row * in->width + one->column), in->width / PER_WORD, 1,
                         ways[i].b, ranks, sums, ranks, 0);
                for (int64_t j = 0; j < rows * ranks; j += LANES)
                    store(grad_low + j, load_floats(sums + j) * one->scaling);
            }
            if (!grad_x) continue;
            scratch room = scratch_of(OF_TASK, 4 * BLOCK * COLUMNS);
            float *added = take(&room, BLOCK * COLUMNS, 4);
            for (int64_t from = 0; from < in->in; from += COLUMNS) {
                const int64_t wide = least(COLUMNS, in->in - from);
                for (int64_t i = tasks[t].first; i < tasks[t].first + tasks[t].updates; i++) {
                    const update *one = in->updates + i;
                    const int64_t ranks = padded(one->r);
                    multiply(rows, wide, in_words(one->r),
                             (const word *)(ways[i].rows + (row - one->start) * ranks), ranks / PER_WORD, 1,
                             ways[i].a + from, in->in, added, COLUMNS, i > tasks[t].first);
                }
                for (int64_t k = 0; k < rows; k++) {
                    const int64_t at = (row + k) * in->in + from;
                    for (int64_t j = 0; j < wide; j += LANES) {
                        vector more = load_floats(added + k * COLUMNS + j);
                        if (keep) more *= load(keep + at + j);
                        store(grad_x + at + j, load(grad_x + at + j) + more);
                    }
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < in->count; i++) {
            const update *one = in->updates + i;
            const int64_t ranks = padded(one->r), rows = one->stop - one->start;
            back *own = ways + i;
            own->low = (word *)zipped(one->low, ranks, rows, ranks, own->low, &own->low_row);
            own->grad_low = (word *)zipped(own->rows, ranks, rows, ranks, own->grad_low, &own->grad_row);
        }
#pragma omp for schedule(static)
        for (int64_t piece = 0; piece < pieces; piece++) {
            int64_t i = 0, at = piece, of_a, of_b;
            for (;; i++) {
                of_a = (in->in + COLUMNS - 1) / COLUMNS;
                of_b = (in->updates[i].out + COLUMNS - 1) / COLUMNS;
                if (at < of_a + of_b) break;
                at -= of_a + of_b;
            }
            const update *one = in->updates + i;
            const back *own = ways + i;
            const int64_t ranks = one->r, rows = one->stop - one->start;
            const int64_t from = (at < of_a ? at : at - of_a) * COLUMNS;
            const int64_t wide = least(COLUMNS, (at < of_a ? in->in : one->out) - from);
            scratch room = scratch_of(OF_TASK, 4 * COLUMNS * (SUMMED + ranks) + 128);
            word *pairs = take(&room, COLUMNS * SUMMED, 4);
            if (at < of_a) {
                sum_over_rows(own->grad_low, own->grad_row, ranks, in->x + one->start * in->in + from, in->in,
                              rows, wide, pairs, one->grad_a + from, in->in);
                continue;
            }
            float *sums = take(&room, COLUMNS * ranks, 4);
            sum_over_rows(own->low, own->low_row, ranks, grad + one->start * in->width + one->column + from,
                          in->width, rows, wide, pairs, sums, wide);
            for (int64_t n = 0; n < wide; n++)
                for (int64_t m = 0; m < ranks; m++) one->grad_b[(from + n) * ranks + m] = sums[m * wide + n];
        }
    }
}
