"""Print the kernels of a plan as C.

Every kernel is a function of its own, under a name made of what it computes and a digest of its text, so that
plans share what they have in common. The driver below runs any plan; all it knows of one are tables.
"""

import math
from collections.abc import Iterable, Sequence

import torch

from . import _ops
from ._kernels import Constant, Entry, Form, Kernel
from ._print import Function, comment

BLOCK = 512  # elements summed in the precision of the data before they join a double

_COMPUTE = {
    torch.float64: "double",
    torch.float32: "float",
    torch.bfloat16: "float",
    torch.float16: "float",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.int16: "int16_t",
    torch.int8: "int8_t",
    torch.uint8: "uint8_t",
    torch.bool: "uint8_t",
}  # the type that values have in registers
_MEMORY = {**_COMPUTE, torch.bfloat16: "uint16_t", torch.float16: "_Float16"}  # and in memory

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


def print_kernel(kernel: Kernel, lines_of_rule: Sequence[str]) -> Function:
    """A leaf program as a function of one chunk."""
    loads, body, names = [], [], []  # a name of an entry ends in its number, so no other name may
    buffers = slots = 0
    for number, entry in enumerate(kernel.entries):
        name = f"{entry.name}{number}"
        names.append(name)
        kind, memory = _COMPUTE[entry.dtype], _MEMORY[entry.dtype]
        if entry.kind == "scalar":
            value = f"plan->values[plan->table[chunk->slots + {slots}]].{_field(entry.dtype)}"
            loads.append(f"const {kind} {name} = {value};")
            slots += 1
        elif entry.kind == "buffer":
            loads.append(f"const {memory} *{name}_at = {_pointer(memory, buffers)};")
            body.append(f"const {kind} {name} = {_load(entry.dtype, f'{name}_at[i]')};")
            buffers += 1
        else:
            text = _expression(entry, kernel.entries, names)
            body.append(f"const {kind} {name} = {text};{comment('//', lines_of_rule[number])}")
    halves = any(e.kind == "buffer" and e.dtype in (torch.float16, torch.bfloat16) for e in kernel.entries)
    sums: list[tuple[str, str]] = []
    folds: list[tuple[str, str]] = []
    ends: list[str] = []
    for number, result in enumerate(kernel.results):
        value = names[result.entry]
        if result.kind == "store":
            memory, place = _MEMORY[result.dtype], f"new_{result.name}{number}_to"
            loads.append(f"{memory} *{place} = {_pointer(memory, buffers)};")
            body.append(f"{place}[i] = {_store(result.dtype, value)};")
            buffers += 1
            continue
        whole = f"{result.kind}{number}_all"
        ends.append(f"plan->partials[chunk->partial + {len(ends)} * chunk->partial_step] = {whole};")
        if result.kind == "sum":
            # Compilers do not spread sums of halves over lanes, and one long sum in float loses three bits.
            sums.append((f"sum{number}", "double" if halves else _COMPUTE[kernel.entries[result.entry].dtype]))
            loads.append(f"double {whole} = 0;")
            body.append(f"sum{number}_part += {value};")
        else:
            folds.append((whole, "greatest" if result.kind == "max" else "least"))
            loads.append(f"double {whole} = {'-INFINITY' if result.kind == 'max' else 'INFINITY'};")
            body.append(f"{whole} = {'MAXIMUM' if result.kind == 'max' else 'MINIMUM'}((double){value}, {whole});")
    stem = "_".join(dict.fromkeys(result.name for result in kernel.results))
    lines = [*loads, *_loop(body, sums, folds), *ends]
    head = "void $(const Plan *plan, const Chunk *chunk) {\n  const int64_t start = chunk->start, n = chunk->count;\n"
    return Function.named(stem, head + "".join(f"  {line}\n" for line in lines) + "}\n")


def _loop(body: Sequence[str], sums: Sequence[tuple[str, str]], folds: Sequence[tuple[str, str]]) -> list[str]:
    """The loop over the elements; with sums, a loop over blocks of them."""
    clauses = [f" reduction(+ : {name}_part)" for name, _ in sums] + [
        f" reduction({how} : {all_})" for all_, how in folds
    ]
    simd = f"#pragma omp simd{''.join(clauses)}"
    if not sums:
        return [simd, "for (int64_t i = 0; i < n; i++) {", *(f"  {line}" for line in body), "}"]
    return [
        f"for (int64_t from = 0; from < n; from += {BLOCK}) {{",
        f"  const int64_t to = n - from < {BLOCK} ? n : from + {BLOCK};",
        *(f"  {kind} {name}_part = 0;" for name, kind in sums),
        f"  {simd}",
        "  for (int64_t i = from; i < to; i++) {",
        *(f"    {line}" for line in body),
        "  }",
        *(f"  {name}_all += {name}_part;" for name, _ in sums),
        "}",
    ]


def print_form(form: Form) -> Function:
    """The program of 0-dim values as a function of many such values."""
    dtype, member = form.dtype, _field(form.dtype)
    memory = _MEMORY[dtype]
    width, stem = 2, f"{form.kind}_{form.op or str(dtype).removeprefix('torch.')}"
    if form.kind == "load":
        line = f"v[row[0]].{member} = {_load(dtype, f'*(const {memory} *)plan->buffers[row[1]]')};"
    elif form.kind == "store":
        line = f"*({memory} *)plan->buffers[row[1]] = {_store(dtype, f'v[row[0]].{member}')};"
    elif form.kind == "reduce":
        return _print_reduce(form, stem)
    else:
        names = []
        width = 1
        for x in form.args:
            names.append("" if isinstance(x, Constant) else f"v[row[{width}]].{_field(x)}")
            width += not isinstance(x, Constant)
        entries = [None if isinstance(x, Constant) else x for x in form.args]
        text = _ops.expression(_C, form.op, form.args, names, entries, dtype, form.compute)
        line = f"v[row[0]].{member} = {text};"
    text = f"""RARELY void $(const Plan *plan, const int64_t *row, int64_t n) {{
  Value *v = plan->values;
  for (const int64_t *end = row + {width} * n; row < end; row += {width})
    {line}
}}
"""
    return Function.named(stem, text)


def _print_reduce(form: Form, stem: str) -> Function:
    kind, member = _COMPUTE[form.dtype], _field(form.dtype)
    step = {"sum": "all + next", "max": "MAXIMUM(next, all)", "min": "MINIMUM(next, all)"}[form.op]
    text = f"""RARELY void $(const Plan *plan, const int64_t *row, int64_t n) {{
  Value *v = plan->values;
  {"double" if form.op == "sum" and form.dtype.is_floating_point else kind} all = v[row[1]].{member};
  for (int64_t i = 2; i < n; i++) {{
    const {kind} next = v[row[i]].{member};
    all = {step};
  }}
  v[row[0]].{member} = {_ops.rounded(form.dtype, f"({kind})all")};
}}
"""
    return Function.named(stem, text)


def print_unit(functions: Iterable[Function]) -> str:
    """A whole source file: the functions in alphabetical order, and the driver."""
    return "\n".join([HEADER, *(function.text for function in sorted(functions)), DRIVER])


def _pointer(memory: str, position: int) -> str:
    return f"({memory} *)plan->buffers[plan->table[chunk->buffers + {position}]] + start"


def _expression(entry: Entry, entries: Sequence[Entry], names: Sequence[str]) -> str:
    operands = ["" if isinstance(x, Constant) else names[x] for x in entry.args]
    dtypes = [None if isinstance(x, Constant) else entries[x].dtype for x in entry.args]
    return _ops.expression(_C, entry.op, entry.args, operands, dtypes, entry.dtype, entry.compute)


class _Language:
    """How C writes constants and conversions."""

    def constant(self, value: float, dtype: torch.dtype) -> str:
        """A Python number as ATen would turn it into a value of `dtype`."""
        kind = _COMPUTE[dtype]
        if not dtype.is_floating_point:
            return f"(({kind}){int(value)}LL)"
        value = float(value)
        if kind == "float":
            value = _ops.nearest_float32(value)
        if not math.isfinite(value):
            return f"(({kind}){'NAN' if math.isnan(value) else '-INFINITY' if value < 0 else 'INFINITY'})"
        return f"({value.hex()}{self.suffix(dtype)})"

    def cast(self, text: str, dtype: torch.dtype) -> str:
        """A value converted to what `dtype` has in registers."""
        return f"({_COMPUTE[dtype]}){text}"

    def suffix(self, dtype: torch.dtype) -> str:
        """What C appends to the names of functions on this dtype."""
        return "f" if _COMPUTE[dtype] == "float" else ""


_C = _Language()


def _load(dtype: torch.dtype, place: str) -> str:
    """Read a value from memory."""
    if dtype == torch.bfloat16:
        return f"from_bfloat16({place})"
    return f"(float){place}" if dtype == torch.float16 else place


def _store(dtype: torch.dtype, value: str) -> str:
    """What to write into memory for a value."""
    if dtype == torch.bfloat16:
        return f"to_bfloat16({value})"
    return f"(_Float16){value}" if dtype == torch.float16 else value


def _field(dtype: torch.dtype) -> str:
    """The member of the union `Value` that holds scalars of this dtype."""
    return {"float": "f", "double": "d"}.get(_COMPUTE[dtype], "i")
