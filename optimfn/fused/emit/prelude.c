/* What every generated file begins with. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __clang__
#define RARELY __attribute__((noinline))
#else
#define RARELY __attribute__((noinline, optimize("no-tree-vectorize", "no-unroll-loops")))
#endif
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define FMA(a, b, c) fma(a, b, c)
#define FMAf(a, b, c) fmaf(a, b, c)
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#define FMAf(a, b, c) ((a) * (b) + (c))
#endif
#define LEAST(a, b) ((a) < (b) ? (a) : (b))
#define HALF 0.5
#define HALFf 0.5f
$words

#define ALIGNED __attribute__((aligned(64)))
#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX__)
#define WIDTH 32
#elif defined(__SSE2__)
#define WIDTH 16
#endif
#ifdef WIDTH
typedef float Vector __attribute__((vector_size(WIDTH)));
#if defined(__clang__)
#define PAST_CACHES(to, value) __builtin_nontemporal_store(value, to)
#elif WIDTH == 64
#define PAST_CACHES(to, value) __builtin_ia32_movntps512((float *)(to), value)
#elif WIDTH == 32
#define PAST_CACHES(to, value) __builtin_ia32_movntps256((float *)(to), value)
#else
#define PAST_CACHES(to, value) __builtin_ia32_movntps((float *)(to), value)
#endif
#define STREAMED __builtin_ia32_sfence()
#else
#define STREAMED (void)0
#endif
/* Copy from the cache to memory without reading there first; `from` is aligned. */
static inline void stream(void *to, const void *from, int64_t bytes) {
  int64_t done = 0;
#ifdef WIDTH
  if ((uintptr_t)to % WIDTH == 0)
    for (; done + WIDTH <= bytes; done += WIDTH)
      PAST_CACHES((Vector *)((char *)to + done), *(const Vector *)((const char *)from + done));
#endif
  if (done < bytes) memcpy((char *)to + done, (const char *)from + done, bytes - done);
}

typedef union { float f; double d; int64_t i; } Value;

typedef struct {  /* a part of a leaf */
  int64_t kernel, buffers, slots;  /* address; positions in `places` */
  int64_t partial, partial_step;   /* where the partial results go */
  int64_t start, count;            /* elements */
} Chunk;

enum { SUM, MAX, MIN };
enum { DOUBLE, FLOAT, TRUTH };

typedef struct {  /* a 0-dim value made of partial results */
  int64_t slot, partial, count, how, dtype;
} Combine;

typedef struct {  /* 0-dim arithmetic of one form */
  int64_t form, rows, count;
} Call;

typedef struct {
  int64_t combines, n_combines, calls, n_calls, chunks, n_chunks, elements;
} Stage;

typedef struct {
  void **buffers;
  Value *values;
  double *partials;
  const int64_t *places, *rows;
  const Combine *combines;
  const Call *calls;
  const Chunk *chunks;
  const Stage *stages;
  int64_t past_caches;  /* whether new results of leaves of several chunks are not read first */
} Plan;

static inline float from_bfloat16(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
static inline uint16_t to_bfloat16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  /* Without a branch, which compilers join with others on NaN, so that they do not vectorize the loop. */
  const uint32_t nan = (bits & 0x7fffffffu) > 0x7f800000u ? 0xffffffffu : 0;
  return (uint16_t)((((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16) & ~nan) | (0x7fc0u & nan));
}
static inline int32_t int32_of(float x) {
  int32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
static inline float float_of(int32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
/* e4m3fn, as torch rounds to it; without branches. */
static inline float from_float8(uint8_t x) {
  const uint32_t size = x & 0x7fu;
  const uint32_t bits = size < 8 ? (uint32_t)int32_of((float)(int32_t)size * 0x1p-9f) : (size << 20) + (120u << 23);
  return float_of((int32_t)((size == 0x7f ? 0x7fc00000u : bits) | (uint32_t)(x & 0x80u) << 24));
}
static inline uint8_t to_float8(float x) {
  const uint32_t bits = (uint32_t)int32_of(x), size = bits & 0x7fffffffu;
  const uint32_t small = (uint32_t)int32_of(float_of((int32_t)size) + 0x1p14f) - (141u << 23);
  const uint32_t large = (size - (120u << 23) + 0x7ffffu + ((size >> 20) & 1)) >> 20;
  const uint32_t beyond = size > 0x7f800000u ? 0x7fu : $beyond_float8, code = size < (121u << 23) ? small : large;
  return (uint8_t)((size > 0x43e80000u ? beyond : code) | (bits >> 24 & 0x80u));
}
typedef int32_t Bitsf;  /* of a magnitude: as whole numbers they are in the same order, with NaN above all */
typedef int64_t Bits;
#define GREATER(a, b) ((a) > (b) ? (a) : (b))
static inline Bitsf magnitudef(float x) {
  return int32_of(x) & INT32_MAX;
}
static inline Bits magnitude(double x) {
  Bits bits;
  memcpy(&bits, &x, 8);
  return bits & INT64_MAX;
}
static inline float from_magnitudef(Bitsf bits) {
  return float_of(bits);
}
static inline double from_magnitude(Bits bits) {
  double value;
  memcpy(&value, &bits, 8);
  return value;
}
/* Codes of 4 bits, two in a byte, the first above; of an odd number the last is alone. */
static inline void unpack(uint8_t *to, const uint8_t *from, int64_t n) {
  for (int64_t i = 0; i < n / 2; i++) {
    to[2 * i] = from[i] >> 4;
    to[2 * i + 1] = from[i] & 15;
  }
  if (n % 2) to[n - 1] = from[n / 2] >> 4;
}
static inline void pack(uint8_t *to, const uint8_t *from, int64_t n) {
  for (int64_t i = 0; i < n / 2; i++) to[i] = (uint8_t)(from[2 * i] << 4 | from[2 * i + 1]);
  if (n % 2) to[n / 2] = (uint8_t)(from[n - 1] << 4);
}
static inline double modulo(double a, double b) {
  double rest = fmod(a, b);
  return rest != 0 && (b < 0) != (rest < 0) ? rest + b : rest;
}
static inline float modulof(float a, float b) {
  float rest = fmodf(a, b);
  return rest != 0 && (b < 0) != (rest < 0) ? rest + b : rest;
}
#pragma omp declare reduction(greatest : double : omp_out = MAXIMUM(omp_in, omp_out)) initializer(omp_priv = -INFINITY)
#pragma omp declare reduction(least : double : omp_out = MINIMUM(omp_in, omp_out)) initializer(omp_priv = INFINITY)
