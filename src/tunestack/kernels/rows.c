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

#ifdef PAIRS

/* x times a polynomial of x^2: least errors from -BEYOND to BEYOND, of Phi(x) - 1/2 below 2e-5 and of Phi(x) +
   x phi(x) - 1/2 below 2e-4, a tenth of what bfloat16 rounds off
   around 1. Beyond them, both are 1/2 of x's sign. */
#define BEYOND 4.25f
#define POWERS 9
static const float of_share[POWERS] = {3.989023394e-01f,  -6.634449277e-02f, 9.815972479e-03f,
                                       -1.108561463e-03f, 9.341880376e-05f,  -5.626438426e-06f,
                                       2.255434032e-07f,  -5.327776636e-09f, 5.564882560e-11f};
static const float of_slope[POWERS] = {7.973457550e-01f,  -2.639648220e-01f, 5.765010595e-02f,
                                       -8.382550129e-03f, 8.348233835e-04f,  -5.610013470e-05f,
                                       2.416344459e-06f,  -5.987715868e-08f, 6.462524437e-10f};

INLINE vector odd_polynomial(vector x, const float *coefficients) {
    const vector square = x * x;
    const vector half = (vector)(((integers)x & INT32_MIN) | (integers)all(0.5f));
    const vector size = (vector)((integers)x & INT32_MAX);
    vector sum = all(coefficients[POWERS - 1]);
#pragma GCC unroll 8
    for (int i = POWERS - 2; i >= 0; i--) sum = sum * square + coefficients[i];
    return chosen(size >= BEYOND, half, sum * x);
}
INLINE vector normal_share(vector x) { return odd_polynomial(x, of_share) + 0.5f; }
INLINE vector gelu_slope(vector x, vector share) {
    (void)share;
    return odd_polynomial(x, of_slope) + 0.5f;
}

#else

/* The share of the standard normal distribution below x, with an error below 2e-7 (Abramowitz and Stegun,
   7.1.26). */
INLINE vector normal_share(vector x) {
    const vector half = x * 0.70710678f;
    const vector size = (vector)((integers)half & INT32_MAX);
    const vector t = 1.0f / (size * 0.3275911f + 1.0f);
    vector tail = t * 1.061405429f - 1.453152027f;
    tail = tail * t + 1.421413741f;
    tail = tail * t - 0.284496736f;
    tail = tail * t + 0.254829592f;
    tail *= t * exponential(-(half * half)) * 0.5f;
    return chosen(half < 0.0f, tail, 1.0f - tail);
}
INLINE vector gelu_slope(vector x, vector share) {
    const vector half = x * 0.70710678f;
    return share + x * exponential(-(half * half)) * 0.39894228f;
}

#endif

/* y = x Phi(x) (Hendrycks and Gimpel, 2016); slope, unless that is NULL: its derivative Phi(x) + x phi(x). */
void gelu(const element *x, int64_t count, element *y, element *slope, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t j = 0; j < count; j += LANES) {
        const vector own = load(x + j), share = normal_share(own);
        store(y + j, own * share);
        if (slope) store(slope + j, gelu_slope(own, share));
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
