/* y = x W^T + b of a frozen weight in bfloat16, for few rows, by the processor's matrix unit. Libraries divide
   such products among threads where there are many rows, or not at all; these are divided by columns of y.

   W is laid out once as panels of 32 columns of y: of each the words (k, n), row by row. */

#include "vectors.h"
#include "tiles.h"

#define PANEL (2 * EDGE) /* Columns of y, and rows, that are worked on at once. */
#define CHUNK 128        /* Rows for which a panel is read once. */
#define TURN 3           /* Rows that are rounded and written while a step of the next sums is under way. */

#ifdef HAS_TILES

/* Whether products can be done this way. */
int32_t dense_works(void) { return tiles_allowed; }

/* w: [n, k], both multiples of 32. */
void dense_lay_out(const element *w, int64_t n, int64_t k, word *to) {
    const int64_t deep = k / PER_WORD;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < deep; j++)
            memcpy(to + (i / PANEL * deep + j) * PANEL + i % PANEL, w + i * k + j * PER_WORD, sizeof(word));
}

/* Sums that still have to get their bias and to be written, `left` rows of a panel's columns. */
typedef struct {
    const float *sums;
    element *to;
    int64_t row, left;
    vector bias[2];
} unwritten;

INLINE void write_some(unwritten *some, int64_t rows) {
    for (; rows > 0 && some->left > 0; rows--, some->left--) {
        for (int j = 0; j < 2; j++)
            store(some->to + j * EDGE, load_floats(some->sums + j * EDGE) + some->bias[j]);
        some->sums += PANEL;
        some->to += some->row;
    }
}

/* Tiles 0 to 3: sums, two side by side; 4 and 5: rows of x; 6 and 7: columns of W. */
INLINE void shape_for(int64_t rows) {
    tile_shapes shapes = whole_tiles();
    shapes.rows[0] = shapes.rows[1] = shapes.rows[4] = least(rows, EDGE);
    if (rows > EDGE) shapes.rows[2] = shapes.rows[3] = shapes.rows[5] = rows - EDGE;
    load_shapes(&shapes);
}

/* sums [up to 32, 32] of rows of x, `k` apart, and a panel, when those before are written; more: whether there are more than 16 rows. */
INLINE void sum_up(const int more, const element *x, int64_t k, const word *panel, float *sums, unwritten *some) {
    const int64_t wide = 4 * PANEL;
    _tile_zero(0);
    _tile_zero(1);
    if (more) _tile_zero(2);
    if (more) _tile_zero(3);
    for (int64_t at = 0; at < k / PER_WORD; at += EDGE) {
        const element *own = x + at * PER_WORD;
        _tile_loadd(6, panel + at * PANEL, wide);
        _tile_loadd(4, own, sizeof(element) * k);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, panel + at * PANEL + EDGE, wide);
        _tile_dpbf16ps(1, 4, 7);
        if (more) {
            _tile_loadd(5, own + EDGE * k, sizeof(element) * k);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        write_some(some, TURN);
    }
    write_some(some, PANEL);
    _tile_stored(0, sums, wide);
    _tile_stored(1, sums + EDGE, wide);
    if (more) _tile_stored(2, sums + EDGE * PANEL, wide);
    if (more) _tile_stored(3, sums + EDGE * PANEL + EDGE, wide);
}

/* Panels from `first` to `end` of y. */
static void panels_of(const element *x, int64_t rows, int64_t k, const word *w, int64_t n, const element *bias,
                      element *y, int64_t first, int64_t end) {
    float sums[PANEL * PANEL];
    unwritten some = {.left = 0};
    int64_t shaped = 0;
    for (int64_t chunk = 0; chunk < rows; chunk += CHUNK)
        for (int64_t panel = first; panel < end; panel++) {
            const word *own = w + panel * (k / PER_WORD) * PANEL;
            for (int64_t i = chunk; i < least(rows, chunk + CHUNK); i += PANEL) {
                const int64_t count = least(PANEL, rows - i);
                if (count != shaped) shape_for(shaped = count);
                __asm__ volatile("" ::: "memory"); /* what was written is there before tiles are loaded */
                if (count > EDGE) sum_up(1, x + i * k, k, own, sums, &some);
                else sum_up(0, x + i * k, k, own, sums, &some);
                some = (unwritten){sums, y + i * n + panel * PANEL, n, count, {{0}}};
                for (int j = 0; bias && j < 2; j++) some.bias[j] = load(bias + panel * PANEL + j * EDGE);
            }
        }
    write_some(&some, PANEL);
    _tile_release();
}

/* x: [rows, k]; w: as laid out; bias: [n], or NULL; y: [rows, n]. */
void dense(const element *x, int64_t rows, int64_t k, const word *w, int64_t n, const element *bias, element *y,
           int32_t threads) {
    const int64_t panels = n / PANEL;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < threads; part++)
        panels_of(x, rows, k, w, n, bias, y, panels * part / threads, panels * (part + 1) / threads);
}

#else

int32_t dense_works(void) { return 0; }
void dense_lay_out(const element *w, int64_t n, int64_t k, word *to) { (void)w, (void)n, (void)k, (void)to; }
void dense(const element *x, int64_t rows, int64_t k, const word *w, int64_t n, const element *bias, element *y,
           int32_t threads) {
    (void)x, (void)rows, (void)k, (void)w, (void)n, (void)bias, (void)y, (void)threads;
}

#endif
