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

