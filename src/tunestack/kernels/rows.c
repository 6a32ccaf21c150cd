/* Sums, norms, activations and dropout's masks of matrices, row by row. */

#include "vectors.h"

#define CHUNK 8 /* Rows that a thread takes at once. */

/* s = x + more, y = (s - mean) / sqrt(variance + eps) * weight + bias (Ba et al., 2016), for [rows, n].
   moments: [rows, 2], mean and reciprocal deviation. */
void norm_forward(const element *x, const element *more, int64_t rows, int64_t n, const element *weight,
                  const element *bias, float eps, element *s, element *y, float *moments, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static, CHUNK)
    for (int64_t i = 0; i < rows; i++) {
        const int64_t at = i * n;
        vector sum = {0}, squares = {0};
        for (int64_t j = 0; j < n; j += LANES) {
            store(s + at + j, load(x + at + j) + load(more + at + j));
            sum += load(s + at + j);
        }
        const float mean = sum_of(sum) / n;
        for (int64_t j = 0; j < n; j += LANES) {
            vector apart = load(s + at + j) - mean;
            squares += apart * apart;
        }
        const float scale = 1 / sqrtf(sum_of(squares) / n + eps);
        for (int64_t j = 0; j < n; j += LANES)
            store(y + at + j, (load(s + at + j) - mean) * scale * load(weight + j) + load(bias + j));
        moments[2 * i] = mean;
        moments[2 * i + 1] = scale;
    }
}

/* What s gets of y's gradient, which is grad, or grad + more unless that is NULL. */
void norm_backward(const element *grad, const element *more, const element *s, const float *moments,
                   int64_t rows, int64_t n, const element *weight, element *found, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static, CHUNK)
    for (int64_t i = 0; i < rows; i++) {
        const int64_t at = i * n;
        const float mean = moments[2 * i], scale = moments[2 * i + 1];
        scratch room = scratch_of(OF_TASK, 4 * n);
        float *weighed = take(&room, n, 4);
        vector sum = {0}, along = {0};
        for (int64_t j = 0; j < n; j += LANES) {
            vector own = load(grad + at + j);
            if (more) own += load(more + at + j);
            own *= load(weight + j);
            store_floats(weighed + j, own);
            sum += own;
            along += own * (load(s + at + j) - mean) * scale;
        }
        const float mean_sum = sum_of(sum) / n, mean_along = sum_of(along) / n;
        for (int64_t j = 0; j < n; j += LANES) {
            vector normal = (load(s + at + j) - mean) * scale;
            store(found + at + j, (load_floats(weighed + j) - mean_sum - normal * mean_along) * scale);
        }
    }
}

/* The share of the standard normal distribution below x, and the density at x times sqrt(2 pi); the error of
   the former is below 2e-7 (Abramowitz and Stegun, 7.1.26). */
INLINE vector normal_share(vector x, vector *density) {
    const vector half = x * 0.70710678f;
    const vector size = (vector)((integers)half & 0x7fffffff);
    const vector t = 1.0f / (size * 0.3275911f + 1.0f);
    vector tail = t * 1.061405429f - 1.453152027f;
    tail = tail * t + 1.421413741f;
    tail = tail * t - 0.284496736f;
    tail = tail * t + 0.254829592f;
    *density = exponential(-(half * half));
    tail *= t * *density * 0.5f;
    return chosen(half < 0.0f, tail, 1.0f - tail);
}

/* y = x Phi(x) (Hendrycks and Gimpel, 2016); slope, unless that is NULL: its derivative Phi(x) + x phi(x). */
void gelu(const element *x, int64_t count, element *y, element *slope, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t j = 0; j < count; j += LANES) {
        vector own = load(x + j), density;
        vector share = normal_share(own, &density);
        store(y + j, own * share);
        if (slope) store(slope + j, share + own * density * 0.39894228f);
    }
}

/* to, which may be x itself, becomes x y, number by number. */
void times(const element *x, const element *y, int64_t count, element *to, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t j = 0; j < count; j += LANES) store(to + j, load(x + j) * load(y + j));
}

/* A hash of 32 bits in which every bit of x decides every other one ("lowbias32", Wellons, 2018). */
INLINE words scattered(words x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

/* keep [rows, n], rows `row` apart: 0 with a probability of dropped / 2^32, else 1. What number (i, j) is, the
   seed and i * n + j decide alone. */
void keep_mask(element *keep, int64_t rows, int64_t n, int64_t row, int64_t dropped, int64_t seed) {
    words low = (uint32_t)seed - (words){0}, high = (uint32_t)(seed >> 32) - (words){0}, lane;
    for (uint32_t i = 0; i < LANES; i++) lane[i] = i;
    low = scattered(low ^ scattered(high + 0x9e3779b9u));
    high = scattered(high ^ scattered(low + 0x9e3779b9u));
    for (int64_t i = 0; i < rows; i++) {
        element *to = keep + i * row;
        for (int64_t j = 0; j < n; j += LANES) {
            words hash = scattered(scattered((lane + (uint32_t)(i * n + j)) ^ low) ^ high);
            vector own = chosen((integers)(hash >= (uint32_t)dropped), all(1), all(0));
            if (n - j >= LANES) {
                store(to + j, own);
                continue;
            }
            element last[LANES];
            store(last, own);
            memcpy(to + j, last, sizeof(element) * (n - j));
        }
    }
}
