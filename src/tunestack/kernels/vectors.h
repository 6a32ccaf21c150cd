/* Vectors of numbers, and memory to work in. Compiled once for float and once, with -DPAIRS, for bfloat16. */

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#define LANES 16
#define TILE_ROWS 8
#elif defined(__AVX__)
#define LANES 8
#define TILE_ROWS 5
#else
#define LANES 4
#define TILE_ROWS 5
#endif

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
typedef uint32_t word;

#ifdef PAIRS
typedef uint16_t element;
#define PER_WORD 2
#else
typedef float element;
#define PER_WORD 1
#endif

#define INLINE static inline __attribute__((always_inline))

INLINE int64_t padded(int64_t count) { return (count + LANES - 1) / LANES * LANES; }
INLINE int64_t in_words(int64_t count) { return (count + PER_WORD - 1) / PER_WORD; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE vector load_floats(const float *from) {
    vector v;
    memcpy(&v, from, sizeof v);
    return v;
}
INLINE void store_floats(float *to, vector v) { memcpy(to, &v, sizeof v); }
INLINE words load_words(const word *from) {
    words v;
    memcpy(&v, from, sizeof v);
    return v;
}
INLINE vector all(float x) { return x - (vector){0}; }

/* Lanes of `yes` where the mask is set, else of `no`. */
INLINE vector chosen(integers mask, vector yes, vector no) {
    return (vector)((mask & (integers)yes) | (~mask & (integers)no));
}

INLINE integers lanes_below(int64_t count) {
    integers lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return lane < (int32_t)count;
}

/* The first, or the second, halves of both, number by number in turn. */
#if LANES == 16
#define FIRST 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define SECOND 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define FIRST 0, 8, 1, 9, 2, 10, 3, 11
#define SECOND 4, 12, 5, 13, 6, 14, 7, 15
#else
#define FIRST 0, 4, 1, 5
#define SECOND 2, 6, 3, 7
#endif
#ifdef __clang__
INLINE words first_halves(words a, words b) { return __builtin_shufflevector(a, b, FIRST); }
INLINE words second_halves(words a, words b) { return __builtin_shufflevector(a, b, SECOND); }
#else
INLINE words first_halves(words a, words b) { return __builtin_shuffle(a, b, (words){FIRST}); }
INLINE words second_halves(words a, words b) { return __builtin_shuffle(a, b, (words){SECOND}); }
#endif

/* The square of LANES vectors with its rows as columns. */
INLINE void turn(words *square) {
    words other[LANES];
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            other[2 * i] = first_halves(square[i], square[i + LANES / 2]);
            other[2 * i + 1] = second_halves(square[i], square[i + LANES / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) square[i] = other[i];
    }
}

INLINE float sum_of(vector v) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)v);
#else
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
#endif
}

INLINE float largest_of(vector v) {
#ifdef __AVX512F__
    return _mm512_reduce_max_ps((__m512)v);
#else
    float most = v[0];
    for (int i = 1; i < LANES; i++) most = v[i] > most ? v[i] : most;
    return most;
#endif
}

#ifdef PAIRS
INLINE words widened(halves h) {
#ifdef __AVX512F__
    return (words)_mm512_cvtepu16_epi32((__m256i)h);
#else
    return __builtin_convertvector(h, words);
#endif
}
INLINE vector load(const element *from) {
    halves h;
    memcpy(&h, from, sizeof h);
    return (vector)(widened(h) << 16);
}
/* To the nearest, ties to even; what is no number stays none. */
INLINE void store(element *to, vector v) {
#ifdef __AVX512BF16__
    __m256bh h = _mm512_cvtneps_pbh((__m512)v);
#else
    words u = (words)v;
    words nearest = u + 0x7fff + (u >> 16 & 1);
    words none = (words)(v != v);
    halves h = __builtin_convertvector(((nearest & ~none) | (none & 0x7fc00000)) >> 16, halves);
#endif
    memcpy(to, &h, sizeof h);
}
#else
INLINE vector load(const element *from) { return load_floats(from); }
INLINE void store(element *to, vector v) { store_floats(to, v); }
#endif

/* sum + a b, for pairs the sum over both. */
INLINE vector add_product(vector sum, words a, words b) {
#ifndef PAIRS
    return sum + (vector)a * (vector)b;
#elif defined(__AVX512BF16__)
    return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum += (vector)(a << 16) * (vector)(b << 16);
    return sum + (vector)(a & 0xffff0000) * (vector)(b & 0xffff0000);
#endif
}

/* x, but from `least` to `most`; what is no number stays none. */
INLINE vector clamped(vector x, float least, float most) {
#ifdef __AVX512F__
    return (vector)_mm512_min_ps((__m512)all(most), _mm512_max_ps((__m512)all(least), (__m512)x));
#else
    x = chosen(x < least, all(least), x);
    return chosen(x > most, all(most), x);
#endif
}

/* e^x within two units in the last place, for x from -87 to 88 and at these ends beyond them; no number where x
   is none. */
INLINE vector exponential(vector x) {
    x = clamped(x, -87.0f, 88.0f);
    const float magic = 12582912.0f; /* 1.5 * 2^23: what is added to it is rounded */
    vector shifted = x * 1.44269504f + magic;
    vector whole = shifted - magic;
    vector rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vector y = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * (rest * rest) + rest + 1.0f;
    return y * (vector)(((integers)shifted << 23) + 0x3f800000);
}

/* Room that a thread uses over and over, handed out in stretches that begin at 64 bytes: of a task, and of a
   whole call, which its tasks share. */
typedef struct {
    char *at, *end;
} scratch;

enum { OF_TASK, OF_CALL };
static __thread char *rooms[2];
static __thread size_t room_bytes[2];
static pthread_key_t at_exit;
static pthread_once_t prepared = PTHREAD_ONCE_INIT;

static void free_rooms(void *unused) {
    (void)unused;
    for (int whose = OF_TASK; whose <= OF_CALL; whose++) free(rooms[whose]);
}
static void prepare(void) { pthread_key_create(&at_exit, free_rooms); }

INLINE scratch scratch_of(int whose, size_t bytes) {
    bytes += 64;
    if (bytes > room_bytes[whose]) {
        pthread_once(&prepared, prepare);
        pthread_setspecific(at_exit, &rooms);
        free(rooms[whose]);
        room_bytes[whose] = bytes;
        rooms[whose] = malloc(bytes);
        if (!rooms[whose]) abort();
    }
    char *at = (char *)(((uintptr_t)rooms[whose] + 63) & ~(uintptr_t)63);
    return (scratch){at, at + bytes - 64};
}

INLINE size_t stretch(int64_t count, size_t each) { return ((size_t)count * each + 63) & ~(size_t)63; }

INLINE void *take(scratch *from, int64_t count, size_t each) {
    void *taken = from->at;
    from->at += stretch(count, each);
    if (from->at > from->end) abort();
    return taken;
}
