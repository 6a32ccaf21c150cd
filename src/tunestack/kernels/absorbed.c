/* Attention of one query a text and head over the text's tokens as they are: keys and values are not computed,
   for what makes them of tokens is taken into the query before and done to the mixture after (DeepSeek-AI,
   2024). Of text t with tokens x_j, head h:

       p_j = softmax_j(scaling (u_th . x_j + q_th . k_jh)),   m_th = sum_j p_j x_j,   o_th = sum_j p_j v_jh

   where k and v are what keys and values have beside, each head its own; NULL where they have nothing. */

#include "softmax.h"

typedef struct {
    const element *x;     /* [tokens, features] */
    const element *u, *q; /* [texts, heads x features], [texts, heads x size] */
    const element *k, *v; /* [tokens, heads x size] */
    const int64_t *starts, *lengths, *rest;
    int64_t texts, rests, heads, size, features;
    float scaling;
    int32_t threads;
} absorbed;

/* `count` numbers, LANES at most, and zeros. */
INLINE vector load_some(const element *from, int64_t count) {
    if (count >= LANES) return load(from);
    element some[LANES] = {0};
    memcpy(some, from, sizeof(element) * count);
    return load(some);
}

/* to_j += a . b_j, where b's rows lie `row` apart. */
static void add_scores(const element *a, const element *b, int64_t row, int64_t rows, int64_t size, float *to) {
    for (int64_t j = 0; j < rows; j++) {
        vector sum = {0};
        for (int64_t i = 0; i < size; i += LANES)
            sum += load_some(a + i, size - i) * load_some(b + j * row + i, size - i);
        to[j] += sum_of(sum);
    }
}

/* to = sum_j p_j b_j. */
static void mix(const float *p, const element *b, int64_t row, int64_t rows, int64_t size, element *to) {
    for (int64_t i = 0; i < size; i += LANES) {
        float sums[LANES];
        vector sum = {0};
        for (int64_t j = 0; j < rows; j++) sum += all(p[j]) * load_some(b + j * row + i, size - i);
        store_floats(sums, sum);
        narrow(sums, least(LANES, size - i), 1, to + i);
    }
}

/* Every row j of `to` = p_j a. */
static void spread(const float *p, const element *a, int64_t row, int64_t rows, int64_t size, element *to) {
    for (int64_t i = 0; i < size; i += LANES) {
        const vector own = load_some(a + i, size - i);
        for (int64_t j = 0; j < rows; j++) {
            float found[LANES];
            store_floats(found, all(p[j]) * own);
            narrow(found, least(LANES, size - i), 1, to + j * row + i);
        }
    }
}

/* Scores, not scaled yet: [heads, wide]. key: the text's tokens as columns. */
INLINE void scores_of(const absorbed *in, int64_t text, const word *key, int64_t wide, float *scores) {
    const int64_t across = in->features / PER_WORD, all_heads = in->heads * in->size;
    const word *u = (const word *)(in->u + text * in->heads * in->features);
    multiply(in->heads, wide, across, u, across, 1, key, wide, scores, wide, 0);
    for (int64_t h = 0; in->k && h < in->heads; h++)
        add_scores(in->q + text * all_heads + h * in->size, in->k + in->starts[text] * all_heads + h * in->size,
                   all_heads, in->lengths[text], in->size, scores + h * wide);
}

/* m: [texts, heads x features]. o: [texts, heads x size], unless there are no v. sums: [texts, heads], the
   logarithms of the softmax's denominators. */
void absorbed_forward(const absorbed *in, element *m, element *o, float *sums) {
    const int64_t heads = in->heads, size = in->size, features = in->features, all_heads = heads * size;
#pragma omp parallel for num_threads(in->threads) schedule(dynamic, 1)
    for (int64_t text = 0; text < in->texts; text++) {
        const int64_t keys = in->lengths[text], wide = padded(keys), start = in->starts[text];
        element *mixture = m + text * heads * features;
        if (!keys) {
            memset(mixture, 0, sizeof(element) * heads * features);
            if (in->v) memset(o + text * all_heads, 0, sizeof(element) * all_heads);
            continue;
        }
        scratch room = scratch_of(OF_TASK, 4 * (2 * wide * features + heads * (features + 2 * wide)) + 5 * 64);
        word *key = take(&room, features * wide, 4), *pairs = take(&room, wide * features, 4);
        float *scores = take(&room, heads * wide, 4), *mixed = take(&room, heads * features, 4);
        element *shares = take(&room, heads * wide, sizeof(element));
        const element *x = in->x + start * features;
        int64_t x_row;
        transpose(x, features, keys, features, key, wide);
        const word *tokens = zipped(x, features, keys, features, pairs, &x_row);
        scores_of(in, text, key, wide, scores);
        for (int64_t h = 0; h < heads; h++) {
            float *row = scores + h * wide;
            const float above = largest(row, keys) * in->scaling;
            const float sum = exponentials(row, keys, in->scaling, above);
            for (int64_t j = 0; j < wide; j += LANES) {
                vector share = load_floats(row + j) * (1 / sum);
                store_floats(row + j, share);
                store(shares + h * wide + j, share);
            }
            sums[text * heads + h] = above + logf(sum);
            if (in->v)
                mix(row, in->v + start * all_heads + h * size, all_heads, keys, size, o + text * all_heads + h * size);
        }
        multiply(heads, features, in_words(keys), (const word *)shares, wide / PER_WORD, 1, tokens, x_row, mixed,
                 features, 0);
        narrow(mixed, heads * features, 1, mixture);
    }
}

/* grad_m, grad_o: of m and o. The others are written, each as what it is the gradient of; that of q where there
   are k. */
void absorbed_backward(const absorbed *in, const element *grad_m, const element *grad_o, const float *sums,
                       element *grad_x, element *grad_u, element *grad_q, element *grad_k, element *grad_v) {
    const int64_t heads = in->heads, size = in->size, features = in->features, all_heads = heads * size;
    const int64_t across = features / PER_WORD;
#pragma omp parallel for num_threads(in->threads) schedule(dynamic, 1)
    for (int64_t text = 0; text < in->texts; text++) {
        const int64_t keys = in->lengths[text], wide = padded(keys), start = in->starts[text];
        const int64_t own = text * heads * features, asked = text * all_heads;
        if (!keys) {
            memset(grad_u + own, 0, sizeof(element) * heads * features);
            if (in->k) memset(grad_q + asked, 0, sizeof(element) * all_heads);
            continue;
        }
        scratch room = scratch_of(OF_TASK, 4 * (3 * wide * features + heads * (3 * features + 6 * wide)) + 12 * 64);
        word *key = take(&room, features * wide, 4), *pairs = take(&room, wide * features, 4);
        float *sum_x = take(&room, wide * features, 4), *sum_u = take(&room, heads * features, 4);
        float *share = take(&room, heads * wide, 4), *slope = take(&room, heads * wide, 4);
        element *shares = take(&room, heads * wide, sizeof(element));
        element *slopes = take(&room, heads * wide, sizeof(element));
        word *share_pairs = take(&room, heads * wide, 4), *slope_pairs = take(&room, heads * wide, 4);
        word *u_pairs = take(&room, heads * features, 4), *grad_pairs = take(&room, heads * features, 4);

        const element *x = in->x + start * features;
        int64_t x_row, u_row, grad_row, share_row, slope_row;
        transpose(x, features, keys, features, key, wide);
        const word *tokens = zipped(x, features, keys, features, pairs, &x_row);
        scores_of(in, text, key, wide, share);
        multiply(heads, wide, across, (const word *)(grad_m + own), across, 1, key, wide, slope, wide, 0);
        for (int64_t h = 0; h < heads; h++) {
            float *p = share + h * wide, *s = slope + h * wide;
            const int64_t there = start * all_heads + h * size, here = asked + h * size;
            exponentials(p, keys, in->scaling, sums[text * heads + h]);
            if (in->v) add_scores(grad_o + here, in->v + there, all_heads, keys, size, s);
            vector mean = {0};
            for (int64_t j = 0; j < wide; j += LANES) mean += load_floats(p + j) * load_floats(s + j);
            const float shift = sum_of(mean);
            for (int64_t j = 0; j < wide; j += LANES) {
                vector share_of = load_floats(p + j);
                vector slope_of = share_of * (load_floats(s + j) - shift) * in->scaling;
                store_floats(s + j, slope_of);
                store(shares + h * wide + j, share_of);
                store(slopes + h * wide + j, slope_of);
            }
            if (in->v) spread(p, grad_o + here, all_heads, keys, size, grad_v + there);
            if (in->k) {
                spread(s, in->q + here, all_heads, keys, size, grad_k + there);
                mix(s, in->k + there, all_heads, keys, size, grad_q + here);
            }
        }
        multiply(heads, features, in_words(keys), (const word *)slopes, wide / PER_WORD, 1, tokens, x_row, sum_u,
                 features, 0);
        narrow(sum_u, heads * features, 1, grad_u + own);
        const word *asking = zipped(in->u + own, features, heads, features, u_pairs, &u_row);
        const word *grads = zipped(grad_m + own, features, heads, features, grad_pairs, &grad_row);
        const word *every_share = zipped(shares, wide, heads, wide, share_pairs, &share_row);
        const word *every_slope = zipped(slopes, wide, heads, wide, slope_pairs, &slope_row);
        multiply(keys, features, in_words(heads), every_share, 1, share_row, grads, grad_row, sum_x, features, 0);
        multiply(keys, features, in_words(heads), every_slope, 1, slope_row, asking, u_row, sum_x, features, 1);
        narrow(sum_x, keys * features, 1, grad_x + start * features);
    }
    clear_rest(in->rest, in->rests, grad_x, features, features);
    if (in->k) clear_rest(in->rest, in->rests, grad_k, all_heads, all_heads);
    if (in->v) clear_rest(in->rest, in->rests, grad_v, all_heads, all_heads);
}

#define ROWS 64 /* Rows that are worked on at once. */

/* c_ih = a_ih B_h of a [rows, heads, k]; b: words (k, n) of every head's matrix, `wide` in a row, a multiple of
   LANES; c: [rows, heads, n]. k: even for pairs. */
void head_products(const element *a, int64_t rows, int64_t heads, int64_t k, const word *b, int64_t wide,
                   int64_t n, element *c, int32_t threads) {
    const int64_t across = k / PER_WORD, blocks = (rows + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < blocks * heads; task++) {
        const int64_t h = task / blocks, from = task % blocks * ROWS, count = least(ROWS, rows - from);
        scratch room = scratch_of(OF_TASK, 4 * ROWS * wide);
        float *sums = take(&room, ROWS * wide, 4);
        multiply(count, wide, across, (const word *)(a + (from * heads + h) * k), heads * across, 1,
                 b + h * across * wide, wide, sums, wide, 0);
        for (int64_t i = 0; i < count; i++) narrow(sums + i * wide, n, 1, c + ((from + i) * heads + h) * n);
    }
}
