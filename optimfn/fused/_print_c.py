"""Print the kernels of a plan as C.

Every kernel is a function of its own, under a name made of what it computes and a digest of its text, so that
plans share what they have in common. The driver below runs any plan; all it knows of one are tables.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from . import _ops
from ._kernels import Constant, Entry, Form, Kernel

BLOCK = 512  # elements summed in the precision of the data before they join a double

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
  double all = c->how == 0 ? 0 : c->how == 1 ? -INFINITY : INFINITY;
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


class Function(NamedTuple):
    """A function in C; its name says what it computes and holds a digest of its text."""

    name: str
    text: str

    @classmethod
    def named(cls, stem: str, text: str) -> "Function":
        """Put the name in the place of `@`."""
        plain = re.sub(r"[^a-z0-9_]+", "_", stem.lower())[:60]
        name = f"{plain}_{hashlib.sha256(without_comments(text).encode()).hexdigest()[:12]}"
        return cls(name, text.replace("@", name))


def without_comments(text: str) -> str:
    """What the compiler sees: where a rule stands must not tell kernels apart."""
    return re.sub(r" *//.*", "", text)


def print_kernel(kernel: Kernel, lines_of_rule: Sequence[str]) -> Function:
    """A leaf program as a function of one chunk."""
    loads, body, names = [], [], []
    buffers = slots = 0
    for number, entry in enumerate(kernel.entries):
        name = f"{entry.name}{number}"
        names.append(name)
        kind, memory = _ops.COMPUTE[entry.dtype], _ops.MEMORY[entry.dtype]
        if entry.kind == "scalar":
            value = f"plan->values[plan->table[chunk->slots + {slots}]].{_ops.field(entry.dtype)}"
            loads.append(f"const {kind} {name} = {value};")
            slots += 1
        elif entry.kind == "buffer":
            loads.append(f"const {memory} *p{number} = {_pointer(memory, buffers)};")
            body.append(f"const {kind} {name} = {_ops.load(entry.dtype, f'p{number}[i]')};")
            buffers += 1
        else:
            body.append(
                f"const {kind} {name} = {_expression(entry, kernel.entries, names)};{_comment(lines_of_rule[number])}"
            )
    halves = any(e.kind == "buffer" and e.dtype in (torch.float16, torch.bfloat16) for e in kernel.entries)
    sums: list[tuple[int, str]] = []
    folds: list[tuple[int, str]] = []
    ends: list[str] = []
    for number, result in enumerate(kernel.results):
        value = names[result.entry]
        if result.kind == "store":
            memory = _ops.MEMORY[result.dtype]
            loads.append(f"{memory} *new_{result.name}{number} = {_pointer(memory, buffers)};")
            body.append(f"new_{result.name}{number}[i] = {_ops.store(result.dtype, value)};")
            buffers += 1
            continue
        ends.append(f"plan->partials[chunk->partial + {len(ends)} * chunk->partial_step] = all{number};")
        if result.kind == "sum":
            # Compilers do not spread sums of halves over lanes, and one long sum in float loses three bits.
            sums.append((number, "double" if halves else _ops.COMPUTE[kernel.entries[result.entry].dtype]))
            loads.append(f"double all{number} = 0;")
            body.append(f"sum{number} += {value};")
        else:
            folds.append((number, "greatest" if result.kind == "max" else "least"))
            loads.append(f"double all{number} = {'-INFINITY' if result.kind == 'max' else 'INFINITY'};")
            body.append(
                f"all{number} = {'MAXIMUM' if result.kind == 'max' else 'MINIMUM'}((double){value}, all{number});"
            )
    stem = "_".join(dict.fromkeys(result.name for result in kernel.results))
    lines = [*loads, *_loop(body, sums, folds), *ends]
    head = "void @(const Plan *plan, const Chunk *chunk) {\n  const int64_t start = chunk->start, n = chunk->count;\n"
    return Function.named(stem, head + "".join(f"  {line}\n" for line in lines) + "}\n")


def _loop(body: Sequence[str], sums: Sequence[tuple[int, str]], folds: Sequence[tuple[int, str]]) -> list[str]:
    """The loop over the elements; with sums, a loop over blocks of them."""
    clauses = [f" reduction(+ : sum{i})" for i, _ in sums] + [f" reduction({how} : all{i})" for i, how in folds]
    simd = f"#pragma omp simd{''.join(clauses)}"
    if not sums:
        return [simd, "for (int64_t i = 0; i < n; i++) {", *(f"  {line}" for line in body), "}"]
    return [
        f"for (int64_t from = 0; from < n; from += {BLOCK}) {{",
        f"  const int64_t to = n - from < {BLOCK} ? n : from + {BLOCK};",
        *(f"  {kind} sum{i} = 0;" for i, kind in sums),
        f"  {simd}",
        "  for (int64_t i = from; i < to; i++) {",
        *(f"    {line}" for line in body),
        "  }",
        *(f"  all{i} += sum{i};" for i, _ in sums),
        "}",
    ]


def print_form(form: Form) -> Function:
    """The program of 0-dim values as a function of many such values."""
    dtype, member = form.dtype, _ops.field(form.dtype)
    memory = _ops.MEMORY[dtype]
    width, stem = 2, f"{form.kind}_{form.op or str(dtype).removeprefix('torch.')}"
    if form.kind == "load":
        line = f"v[row[0]].{member} = {_ops.load(dtype, f'*(const {memory} *)plan->buffers[row[1]]')};"
    elif form.kind == "store":
        line = f"*({memory} *)plan->buffers[row[1]] = {_ops.store(dtype, f'v[row[0]].{member}')};"
    elif form.kind == "reduce":
        return _print_reduce(form, stem)
    else:
        names = []
        width = 1
        for x in form.args:
            names.append("" if isinstance(x, Constant) else f"v[row[{width}]].{_ops.field(x)}")
            width += not isinstance(x, Constant)
        entries = [None if isinstance(x, Constant) else x for x in form.args]
        text = _operation(form.op, form.args, names, entries, dtype, form.compute)
        line = f"v[row[0]].{member} = {text};"
    text = f"""RARELY void @(const Plan *plan, const int64_t *row, int64_t n) {{
  Value *v = plan->values;
  for (const int64_t *end = row + {width} * n; row < end; row += {width})
    {line}
}}
"""
    return Function.named(stem, text)


def _print_reduce(form: Form, stem: str) -> Function:
    kind, member = _ops.COMPUTE[form.dtype], _ops.field(form.dtype)
    step = {"sum": "all + next", "max": "MAXIMUM(next, all)", "min": "MINIMUM(next, all)"}[form.op]
    text = f"""RARELY void @(const Plan *plan, const int64_t *row, int64_t n) {{
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


def _comment(line: str) -> str:
    return f"  // {line}" if line else ""


def _pointer(memory: str, position: int) -> str:
    return f"({memory} *)plan->buffers[plan->table[chunk->buffers + {position}]] + start"


def _expression(entry: Entry, entries: Sequence[Entry], names: Sequence[str]) -> str:
    operands = ["" if isinstance(x, Constant) else names[x] for x in entry.args]
    dtypes = [None if isinstance(x, Constant) else entries[x].dtype for x in entry.args]
    return _operation(entry.op, entry.args, operands, dtypes, entry.dtype, entry.compute)


def _operation(
    op: str,
    args: Sequence[object],
    names: Sequence[str],
    dtypes: Sequence[torch.dtype | None],
    dtype: torch.dtype,
    compute: torch.dtype,
) -> str:
    """One operator on operands, of which constants have no name and no dtype."""
    operands = []
    for position, (arg, name, own) in enumerate(zip(args, names, dtypes, strict=True)):
        rounds = compute in _ops.LOW_PRECISION and (op, position) not in _ops.TAKES_FLOAT32
        if isinstance(arg, Constant):
            value = arg.value
            if rounds and value is not None:
                value = torch.tensor(value, dtype=compute).item()
            operands.append("" if value is None else _ops.constant(value, compute))
        elif own == compute or (op == "where" and position == 0):
            operands.append(name)
        else:
            cast = f"({_ops.COMPUTE[compute]}){name}"
            operands.append(_ops.rounded(compute, cast) if rounds else cast)
    form = _ops.template(op, [x.value if isinstance(x, Constant) else None for x in args], compute)
    assert form is not None
    text = form.format(*operands, s=_ops.suffix(compute))
    return text if op == "fill" else _ops.rounded(dtype, text)
