/* Attention of texts of any lengths whose tokens stand one after the other (Vaswani et al., 2017), and its
   way back, which computes the probabilities again (Dao et al., 2022).

   Queries, keys and values are matrices [tokens, heads x size] whose rows lie `row` elements apart. Text i
   has `lengths[i]` tokens from `starts[i]` on; all of them ask, or, with `first`, their first ones alone, and
   then row i of `out` is text i. Nothing is written for tokens that are in no text. */

#include "softmax.h"

#define ASKED 64 /* Queries that are worked on at once. */

typedef struct {
    const element *q, *k, *v;
    int64_t row;
    const int64_t *starts, *lengths, *rest;
    int64_t texts, rests, heads, size;
    float scaling;
    int32_t first, threads;
} inputs;

/* A matrix [rows, padded(size)]: x itself, or, where its rows do not fill vectors, a copy in `room`, filled up
   with zeros. */
INLINE const element *filled(const element *x, int64_t row, int64_t rows, int64_t size, element *room,
                             int64_t *filled_row) {
    *filled_row = row;
    if (size % LANES == 0) return x;
    const int64_t wide = *filled_row = padded(size);
    memset(room, 0, sizeof(element) * rows * wide);
    for (int64_t i = 0; i < rows; i++) memcpy(room + i * wide, x + i * row, sizeof(element) * size);
    return room;
}

/* out: rows `heads x size` apart. sums: [rows of out, heads], the logarithms of the softmax's denominators. */
void attention_forward(const inputs *in, element *out, float *sums) {
    const int64_t size = in->size, heads = in->heads, deep = padded(size), across = deep / PER_WORD;
#pragma omp parallel for num_threads(in->threads) schedule(dynamic, 4)
    for (int64_t task = 0; task < in->texts * heads; task++) {
        const int64_t text = task / heads, head = task % heads;
        const int64_t keys = in->lengths[text], wide = padded(keys), asked = in->first ? 1 : keys;
        const int64_t at = in->starts[text] * in->row + head * size;
        if (!keys) {
            if (in->first) memset(out + (text * heads + head) * size, 0, sizeof(element) * size);
            continue;
        }
        const int64_t kept = deep * wide, square = ASKED * wide, strip = ASKED * deep;
        scratch room = scratch_of(OF_TASK, 4 * (5 * kept + 2 * square + strip));
        element *copies[3];
        for (int i = 0; i < 3; i++) copies[i] = take(&room, kept, sizeof(element));
        word *key = take(&room, kept, 4), *pairs = take(&room, kept, 4);
        float *scores = take(&room, square, 4), *mixed = take(&room, strip, 4);
        element *shares = take(&room, square, sizeof(element));

        int64_t q_row, k_row, v_row, value_row;
        const element *q = filled(in->q + at, in->row, asked, size, copies[0], &q_row);
        const element *k = filled(in->k + at, in->row, keys, size, copies[1], &k_row);
        const element *v = filled(in->v + at, in->row, keys, size, copies[2], &v_row);
        transpose(k, k_row, keys, deep, key, wide);
        const word *value = zipped(v, v_row, keys, deep, pairs, &value_row);
        for (int64_t from = 0; from < asked; from += ASKED) {
            const int64_t count = least(ASKED, asked - from);
            const int64_t out_row = in->first ? text : in->starts[text] + from;
            multiply(count, wide, across, (const word *)(q + from * q_row), q_row / PER_WORD, 1, key, wide,
                     scores, wide, 0);
            for (int64_t i = 0; i < count; i++) {
                float *row = scores + i * wide;
                const float above = largest(row, keys) * in->scaling;
                const float sum = exponentials(row, keys, in->scaling, above);
                narrow(row, wide, 1 / sum, shares + i * wide);
                sums[(out_row + i) * heads + head] = above + logf(sum);
            }
            multiply(count, deep, in_words(keys), (const word *)shares, wide / PER_WORD, 1, value, value_row,
                     mixed, deep, 0);
            for (int64_t i = 0; i < count; i++)
                narrow(mixed + i * deep, size, 1, out + ((out_row + i) * heads + head) * size);
        }
    }
    if (!in->first) clear_rest(in->rest, in->rests, out, heads * size, heads * size);
}

/* grad: of out. grad_q, grad_k, grad_v: rows `row` apart as their inputs. With `first` the other tokens'
   queries get zeros. */
void attention_backward(const inputs *in, const element *grad, const float *sums, element *grad_q,
                        element *grad_k, element *grad_v) {
    const int64_t size = in->size, heads = in->heads, row = in->row;
    const int64_t deep = padded(size), across = deep / PER_WORD;
#pragma omp parallel for num_threads(in->threads) schedule(dynamic, 4)
    for (int64_t task = 0; task < in->texts * heads; task++) {
        const int64_t text = task / heads, head = task % heads;
        const int64_t keys = in->lengths[text], wide = padded(keys), asked = in->first ? 1 : keys;
        const int64_t at = in->starts[text] * row + head * size;
        if (!keys) continue;
        const int64_t kept = deep * wide, square = ASKED * wide, strip = ASKED * deep;
        scratch room = scratch_of(OF_TASK, 4 * (9 * kept + 6 * square + 3 * strip));
        element *copies[4];
        for (int i = 0; i < 4; i++) copies[i] = take(&room, kept, sizeof(element));
        word *key = take(&room, kept, 4), *value = take(&room, kept, 4), *key_pairs = take(&room, kept, 4);
        float *sum_k = take(&room, kept, 4), *sum_v = take(&room, kept, 4), *sum_q = take(&room, strip, 4);
        float *share = take(&room, square, 4), *slope = take(&room, square, 4);
        element *shares = take(&room, square, sizeof(element)), *slopes = take(&room, square, sizeof(element));
        word *share_pairs = take(&room, square, 4), *slope_pairs = take(&room, square, 4);
        word *query_pairs = take(&room, strip, 4), *grad_pairs = take(&room, strip, 4);

        int64_t q_row, k_row, v_row, g_row, key_row, query_row, grad_row, share_row, slope_row;
        const int64_t out_row = in->first ? text : in->starts[text];
        const element *q = filled(in->q + at, row, asked, size, copies[0], &q_row);
        const element *k = filled(in->k + at, row, keys, size, copies[1], &k_row);
        const element *v = filled(in->v + at, row, keys, size, copies[2], &v_row);
        const element *g = filled(grad + (out_row * heads + head) * size, heads * size, asked, size, copies[3],
                                  &g_row);
        transpose(k, k_row, keys, deep, key, wide);
        transpose(v, v_row, keys, deep, value, wide);
        const word *keys_zipped = zipped(k, k_row, keys, deep, key_pairs, &key_row);
        for (int64_t from = 0; from < asked; from += ASKED) {
            const int64_t count = least(ASKED, asked - from), pairs = in_words(count);
            const element *query = q + from * q_row, *own = g + from * g_row;
            multiply(count, wide, across, (const word *)query, q_row / PER_WORD, 1, key, wide, share, wide, 0);
            multiply(count, wide, across, (const word *)own, g_row / PER_WORD, 1, value, wide, slope, wide, 0);
            for (int64_t i = 0; i < count; i++) {
                float *p = share + i * wide, *s = slope + i * wide;
                exponentials(p, keys, in->scaling, sums[(out_row + from + i) * heads + head]);
                vector mean = {0};
                for (int64_t j = 0; j < wide; j += LANES) mean += load_floats(p + j) * load_floats(s + j);
                const float shift = sum_of(mean);
                for (int64_t j = 0; j < wide; j += LANES) {
                    vector share_of = load_floats(p + j);
                    store(shares + i * wide + j, share_of);
                    store(slopes + i * wide + j, share_of * (load_floats(s + j) - shift) * in->scaling);
                }
            }
            multiply(count, deep, in_words(keys), (const word *)slopes, wide / PER_WORD, 1, keys_zipped,
                     key_row, sum_q, deep, 0);
            for (int64_t i = 0; i < count; i++)
                narrow(sum_q + i * deep, size, 1, grad_q + at + (from + i) * row);
            const word *queries = zipped(query, q_row, count, deep, query_pairs, &query_row);
            const word *grads = zipped(own, g_row, count, deep, grad_pairs, &grad_row);
            const word *every_share = zipped(shares, wide, count, wide, share_pairs, &share_row);
            const word *every_slope = zipped(slopes, wide, count, wide, slope_pairs, &slope_row);
            multiply(keys, deep, pairs, every_share, 1, share_row, grads, grad_row, sum_v, deep, from > 0);
            multiply(keys, deep, pairs, every_slope, 1, slope_row, queries, query_row, sum_k, deep, from > 0);
        }
        for (int64_t i = 0; i < keys; i++) {
            narrow(sum_k + i * deep, size, 1, grad_k + at + i * row);
            narrow(sum_v + i * deep, size, 1, grad_v + at + i * row);
            if (i >= asked) memset(grad_q + at + i * row, 0, sizeof(element) * size);
        }
    }
    clear_rest(in->rest, in->rests, grad_q, row, heads * size);
    clear_rest(in->rest, in->rests, grad_k, row, heads * size);
    clear_rest(in->rest, in->rests, grad_v, row, heads * size);
}
