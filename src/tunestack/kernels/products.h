/* Matrix products small enough to stay in a core's own cache.

   They work on words of 32 bits: a float, or a pair of bfloat16 numbers that are neighbours in the direction
   which is summed over. Sums are float. A's word (m, k) lies at a[m * a_row + k * a_step], B's word (k, n) at
   b[k * b_row + n]. */

#include "vectors.h"
#include "tiles.h"

INLINE void tile(const int rows, const int wide, int64_t k, const word *a, int64_t a_row, int64_t a_step,
                 const word *b, int64_t b_row, float *c, int64_t c_row, int adds) {
    vector sum[TILE_ROWS][2];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < wide; j++)
            sum[i][j] = adds ? load_floats(c + i * c_row + j * LANES) : (vector){0};
    for (int64_t at = 0; at < k; at++) {
        words other[2];
#pragma GCC unroll 2
        for (int j = 0; j < wide; j++) other[j] = load_words(b + at * b_row + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            words own = a[i * a_row + at * a_step] - (words){0};
#pragma GCC unroll 2
            for (int j = 0; j < wide; j++) sum[i][j] = add_product(sum[i][j], own, other[j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < wide; j++) store_floats(c + i * c_row + j * LANES, sum[i][j]);
}

#ifdef HAS_TILES
#define TURNED_WORDS 128 /* Words of a row of A that are turned at once. */

/* Tiles 0 and 1: sums; 2: rows of A, 3 and 4: B; 5, 6, 7: the same for the last `rest` words of the sums. */
INLINE void shape_tiles(int64_t rows, int64_t rest) {
    tile_shapes shapes = whole_tiles();
    shapes.rows[0] = shapes.rows[1] = shapes.rows[2] = shapes.rows[5] = rows;
    if (rest) shapes.row_bytes[5] = 4 * rest, shapes.rows[6] = shapes.rows[7] = rest;
    load_shapes(&shapes);
}

/* Rows of A one after the other, where they are its columns: words (m, k) of up to EDGE rows. */
INLINE void turn_rows(const word *a, int64_t a_step, int64_t k, word *to) {
    for (int64_t at = 0; at < k; at += EDGE) {
        words square[EDGE];
        for (int64_t i = 0; i < EDGE; i++)
            square[i] = at + i < k ? load_words(a + (at + i) * a_step) : (words){0};
        turn(square);
        for (int64_t i = 0; i < EDGE; i++) memcpy(to + i * TURNED_WORDS + at, square + i, sizeof(words));
    }
}

/* c [rows, n] = a b, or c + a b, of up to EDGE rows, for which the tiles are shaped. */
INLINE void multiply_rows(int64_t n, int64_t k, const word *a, int64_t a_row, const word *b, int64_t b_row,
                          float *c, int64_t c_row, int adds) {
    const int64_t whole = k / EDGE * EDGE, step = 4 * b_row;
    for (int64_t j = 0; j < n; j += 2 * EDGE) {
        const int two = n - j > EDGE;
        const word *other = b + j;
        float *to = c + j;
        if (adds) {
            _tile_loadd(0, to, 4 * c_row);
            if (two) _tile_loadd(1, to + EDGE, 4 * c_row);
        } else {
            _tile_zero(0);
            _tile_zero(1);
        }
        for (int64_t at = 0; at < whole; at += EDGE) {
            _tile_loadd(2, a + at, 4 * a_row);
            _tile_loadd(3, other + at * b_row, step);
            _tile_dpbf16ps(0, 2, 3);
            if (two) {
                _tile_loadd(4, other + at * b_row + EDGE, step);
                _tile_dpbf16ps(1, 2, 4);
            }
        }
        if (whole < k) {
            _tile_loadd(5, a + whole, 4 * a_row);
            _tile_loadd(6, other + whole * b_row, step);
            _tile_dpbf16ps(0, 5, 6);
            if (two) {
                _tile_loadd(7, other + whole * b_row + EDGE, step);
                _tile_dpbf16ps(1, 5, 7);
            }
        }
        _tile_stored(0, to, 4 * c_row);
        if (two) _tile_stored(1, to + EDGE, 4 * c_row);
    }
}

/* As `multiply`. Where a_step is not 1, a_row is, and whole vectors of rows can be read. */
static void multiply_tiles(int64_t m, int64_t n, int64_t k, const word *a, int64_t a_row, int64_t a_step,
                           const word *b, int64_t b_row, float *c, int64_t c_row, int adds) {
    word turned[EDGE * TURNED_WORDS];
    int64_t from = 0, deep;
    do { /* once, but for sums over more words than are turned at once */
        deep = a_step == 1 ? k : least(TURNED_WORDS, k - from);
        for (int64_t i = 0; i < m; i += EDGE) {
            const int64_t rows = least(EDGE, m - i);
            const word *own = a + i * a_row + from * a_step;
            if (i == 0 || rows < EDGE) shape_tiles(rows, deep % EDGE);
            if (a_step != 1) turn_rows(own, a_step, deep, turned);
            __asm__ volatile("" ::: "memory"); /* what was written is there before tiles are loaded */
            multiply_rows(n, deep, a_step == 1 ? own : turned, a_step == 1 ? a_row : TURNED_WORDS,
                          b + from * b_row, b_row, c + i * c_row, c_row, adds || from > 0);
        }
        from += deep;
    } while (from < k);
    _tile_release();
}
#endif

/* c [m, n] = a b, or c + a b; n: a multiple of LANES; k: in words. Every sum runs from the first to the last
   k, whatever m is. */
static inline void multiply(int64_t m, int64_t n, int64_t k, const word *a, int64_t a_row, int64_t a_step,
                     const word *b, int64_t b_row, float *c, int64_t c_row, int adds) {
#ifdef HAS_TILES
    if (tiles_allowed) {
        multiply_tiles(m, n, k, a, a_row, a_step, b, b_row, c, c_row, adds);
        return;
    }
#endif
    for (int64_t j = 0; j < n; j += 2 * LANES) {
        for (int64_t i = 0; i < m; i += TILE_ROWS) {
            const word *own = a + i * a_row, *other = b + j;
            float *to = c + i * c_row + j;
            if (n - j >= 2 * LANES) {
                switch (least(m - i, TILE_ROWS)) {
#define CASE(rows, wide) \
    case rows: tile(rows, wide, k, own, a_row, a_step, other, b_row, to, c_row, adds); break;
                    CASE(1, 2) CASE(2, 2) CASE(3, 2) CASE(4, 2) CASE(5, 2)
#if TILE_ROWS == 8
                    CASE(6, 2) CASE(7, 2) CASE(8, 2)
#endif
                }
            } else {
                switch (least(m - i, TILE_ROWS)) {
                    CASE(1, 1) CASE(2, 1) CASE(3, 1) CASE(4, 1) CASE(5, 1)
#if TILE_ROWS == 8
                    CASE(6, 1) CASE(7, 1) CASE(8, 1)
#endif
                }
            }
        }
    }
#undef CASE
}

/* Words (k, n) of rows that are summed over: x itself, or, in `room`, its rows two by two, the last one with
   zeros. n: a multiple of LANES. */
INLINE const word *zipped(const element *x, int64_t row, int64_t rows, int64_t n, word *room,
                          int64_t *zipped_row) {
#ifdef PAIRS
    for (int64_t k = 0; k < rows; k += 2) {
        word *to = room + k / 2 * n;
        for (int64_t i = 0; i < n; i += LANES) {
            halves low, high = {0};
            memcpy(&low, x + k * row + i, sizeof low);
            if (k + 1 < rows) memcpy(&high, x + (k + 1) * row + i, sizeof high);
            words pairs = widened(low) | widened(high) << 16;
            memcpy(to + i, &pairs, sizeof pairs);
        }
    }
    *zipped_row = n;
    return room;
#else
    (void)rows, (void)n, (void)room;
    *zipped_row = row;
    return (const word *)x;
#endif
}

