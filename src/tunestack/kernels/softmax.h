/* What attention is made of beside products. */

#include "products.h"

/* Columns n to n + LANES of what `transpose` writes, from `rows` rows, `wide` words each. */
INLINE void turned(const element *x, int64_t row, int64_t rows, int64_t wide, word *to, int64_t to_row) {
    words square[LANES];
    for (int64_t i = 0; i < LANES; i++) {
        square[i] = (words){0};
        if (i < rows) memcpy(square + i, x + i * row, sizeof(word) * wide);
    }
    turn(square);
    for (int64_t i = 0; i < wide; i++) memcpy(to + i * to_row, square + i, sizeof(words));
}

/* Words (k, n) of a B whose column n is row n of x, `across` numbers each; n is filled up with zeros. */
static void transpose(const element *x, int64_t row, int64_t rows, int64_t across, word *to, int64_t to_row) {
    const int64_t deep = across / PER_WORD;
    for (int64_t n = 0; n < rows; n += LANES)
        for (int64_t k = 0; k < deep; k += LANES) {
            const element *from = x + n * row + k * PER_WORD;
            word *own = to + k * to_row + n;
            if (deep - k >= LANES) turned(from, row, rows - n, LANES, own, to_row);
            else turned(from, row, rows - n, deep - k, own, to_row);
        }
}

/* Zeros in place of the results of the tokens of no text, rows `row` apart. */
INLINE void clear_rest(const int64_t *rest, int64_t rests, element *results, int64_t row, int64_t width) {
    for (int64_t i = 0; i < rests; i++) memset(results + rest[i] * row, 0, sizeof(element) * width);
}

/* e^(scaling x - above) of a row of scores, 0 beyond the keys; returns the sum. */
INLINE float exponentials(float *scores, int64_t keys, float scaling, float above) {
    vector sum = {0};
    for (int64_t j = 0; j < keys; j += LANES) {
        vector p = exponential(load_floats(scores + j) * scaling - above);
        if (keys - j < LANES) p = chosen(lanes_below(keys - j), p, (vector){0});
        store_floats(scores + j, p);
        sum += p;
    }
    return sum_of(sum);
}

INLINE float largest(const float *scores, int64_t keys) {
    vector most = all(scores[0]);
    for (int64_t j = 0; j < keys; j += LANES) {
        vector own = load_floats(scores + j);
        if (keys - j < LANES) own = chosen(lanes_below(keys - j), own, most);
        most = chosen(own > most, own, most);
    }
    return largest_of(most);
}

INLINE void narrow(const float *from, int64_t n, float factor, element *to) {
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) store(to + j, load_floats(from + j) * factor);
    if (j == n) return;
    element last[LANES];
    store(last, load_floats(from + j) * factor);
    memcpy(to + j, last, sizeof(element) * (n - j));
}
