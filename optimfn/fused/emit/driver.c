/* What the first file that a process loads ends with: it runs any plan, of which all it knows are tables. */
static void combine(const Plan *plan, const Combine *c) {
  const double *part = plan->partials + c->partial;
  const int truth = c->dtype == TRUTH;  /* of nothing, any is false and all is true */
  double all = c->how == SUM ? 0 : c->how == MAX ? (truth ? 0 : -INFINITY) : (truth ? 1 : INFINITY);
  for (int64_t i = 0; i < c->count; i++)
    all = c->how == SUM ? all + part[i] : c->how == MAX ? MAXIMUM(part[i], all) : MINIMUM(part[i], all);
  Value *value = plan->values + c->slot;
  switch (c->dtype) {
    case DOUBLE: value->d = all; break;
    case FLOAT: value->f = (float)all; break;
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
    const int64_t n = stage->n_chunks, useful = stage->elements / $chunk;
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
