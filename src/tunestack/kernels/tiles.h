/* Products of pairs by the processor's matrix unit (Intel's AMX), where there is one that the system lets this
   process use. Its registers, tiles, are matrices of up to 16 rows of 64 bytes. */

#if defined(PAIRS) && defined(__AMX_BF16__) && defined(__linux__)
#define HAS_TILES
#include <sys/syscall.h>
#include <unistd.h>

#define EDGE 16         /* Rows of a tile, and words of its rows. */
#define TURNED_WORDS 128 /* Words of a row of A that are turned at once. */

static int tiles_allowed;

__attribute__((constructor)) static void ask_for_tiles(void) {
    const int request = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    tiles_allowed = !syscall(SYS_arch_prctl, request, tile_data);
}

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* Tiles 0 and 1: sums; 2: rows of A, 3 and 4: B; 5, 6, 7: the same for the last `rest` words of the sums. */
INLINE void shape_tiles(int64_t rows, int64_t rest) {
    tile_shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) shapes.row_bytes[i] = 4 * EDGE, shapes.rows[i] = EDGE;
    shapes.rows[0] = shapes.rows[1] = shapes.rows[2] = shapes.rows[5] = rows;
    if (rest) shapes.row_bytes[5] = 4 * rest, shapes.rows[6] = shapes.rows[7] = rest;
    _tile_loadconfig(&shapes);
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
    do {
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
