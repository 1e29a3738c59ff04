"""What every generated C file begins and ends with: the words of the operator table, and what runs a plan."""

HEADER = r"""
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
/* NaN wins, as in ATen. */
#define MAXIMUM(a, b) ((a) > (b) || (a) != (a) ? (a) : (b))
#define MINIMUM(a, b) ((a) < (b) || (a) != (a) ? (a) : (b))
#define SIGN(a) (((a) > 0) - ((a) < 0))
#define SELECT(condition, a, b) ((condition) ? (a) : (b))
#define DIVIDE(a, b) ((a) / (b))
#define RECIPROCAL(a) (1 / (a))
#define QUOTIENT(a, b) ((a) / (b))
#define LEAST(a, b) ((a) < (b) ? (a) : (b))
#define NOT(a) (!(a))
#define AND(a, b) ((a) && (b))
#define OR(a, b) ((a) || (b))
#define HALF 0.5
#define HALFf 0.5f
#define ROUND_BFLOAT16(a) from_bfloat16(to_bfloat16(a))
#define ROUND_FLOAT16(a) ((float)(_Float16)(a))

typedef union { float f; double d; int64_t i; } Value;

typedef struct {  /* a part of a leaf */
  int64_t kernel, buffers, slots;  /* address; positions in the tables */
  int64_t partial, partial_step;   /* where the partial results go */
  int64_t start, count;            /* elements */
} Chunk;

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
  const int64_t *table, *rows;
  const Combine *combines;
  const Call *calls;
  const Chunk *chunks;
  const Stage *stages;
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
  return x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
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
""".lstrip()

DRIVER = r"""
static void combine(const Plan *plan, const Combine *c) {
  const double *part = plan->partials + c->partial;
  const int truth = c->dtype == 2;  /* of nothing, any is false and all is true */
  double all = c->how == 0 ? 0 : c->how == 1 ? (truth ? 0 : -INFINITY) : (truth ? 1 : INFINITY);
  for (int64_t i = 0; i < c->count; i++)
    all = c->how == 0 ? all + part[i] : c->how == 1 ? MAXIMUM(part[i], all) : MINIMUM(part[i], all);
  Value *value = plan->values + c->slot;
  switch (c->dtype) {
    case 0: value->d = all; break;
    case 1: value->f = (float)all; break;
    default: value->i = (int64_t)all;
  }
}

void run(const Plan *plan, int64_t first, int64_t last, int64_t threads) {
  for (int64_t k = first; k < last; k++) {
    const Stage *stage = plan->stages + k;
    for (int64_t i = 0; i < stage->n_combines; i++) combine(plan, plan->combines + stage->combines + i);
    for (int64_t i = 0; i < stage->n_calls; i++) {
      const Call *call = plan->calls + stage->calls + i;
      ((void (*)(const Plan *, const int64_t *, int64_t))call->form)(plan, plan->rows + call->rows, call->count);
    }
    const Chunk *chunks = plan->chunks + stage->chunks;
    const int64_t n = stage->n_chunks, useful = stage->elements / 16384;
    const int team = (int)(useful < 1 ? 1 : useful < threads ? useful : threads);
    #pragma omp parallel for schedule(static) num_threads(team) if (team > 1)
    for (int64_t i = 0; i < n; i++)
      ((void (*)(const Plan *, const Chunk *))chunks[i].kernel)(plan, chunks + i);
  }
}

/* Whether memory that is only read overlaps memory that is written. `spans` holds starts and ends, sorted. */
int64_t clash(const int64_t *spans, int64_t n_spans, const int64_t *starts, const int64_t *sizes, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    int64_t low = 0, high = n_spans;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (spans[2 * middle + 1] <= starts[i]) low = middle + 1; else high = middle;
    }
    if (low < n_spans && sizes[i] > 0 && spans[2 * low] < starts[i] + sizes[i]) return 1;
  }
  return 0;
}
""".lstrip()
