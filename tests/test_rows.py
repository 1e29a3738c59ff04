"""Sparse gradients: what a step of some rows gives, and what it costs."""

import copy

import pytest
import torch
from cases import CASES
from test_in_parts import Memory

import optimfn as of
from optimfn import tree

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch makes sparse tensors on the way
ROWS, WIDTH = 9, 3
STEPS = 5


def a_gradient(seed, shape=(ROWS, WIDTH), count=4, dtype=torch.float64):
    """Some rows of a table, one of them twice."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, shape[0], (1, count), generator=generator)
    index[0, -1] = index[0, 0]
    values = torch.randn((count, *shape[1:]), dtype=torch.float64, generator=generator).to(dtype)
    return torch.sparse_coo_tensor(index, values, shape, check_invariants=True)


def a_table(dtype=torch.float64, shape=(ROWS, WIDTH)):
    generator = torch.Generator().manual_seed(99)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def lazily(tx, table, gradients):
    """The same by hand: the rule on the rows that are there, and what it keeps of them put back."""
    state = tx.init({"w": table})
    for gradient in gradients:
        table, state = lazy_step(tx, table, state, gradient.coalesce())
    return table, state


def lazy_step(tx, table, state, gradient):
    index = gradient.indices()[0]

    def is_row(x):
        return x.ndim > 0 and len(x) == len(table)

    own = tree.map(lambda x: x[index] if is_row(x) else x, state)
    rows = {"w": table[index]}
    updates, new = tx.update({"w": gradient.values()}, own, rows)
    rows = of.apply_updates(rows, updates)["w"]
    state = tree.map(lambda x, now: x.index_put((index,), now) if is_row(x) else now, state, new)
    return table.index_put((index,), rows), state


def steps_rows(case):
    """Whether it promises to treat leaves alone, and all that its state holds for a table is rows, or one number."""
    tx = case.plain()
    if not tx.leafwise or case.extra or "by_rows" in case.skips:
        return False
    return all(x.shape in ((ROWS, WIDTH), (ROWS, 1), ()) for x in tree.leaves(tx.init({"w": a_table()})))


BY_ROWS = [case for case in CASES if steps_rows(case)]


def assert_same(a, b):
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", BY_ROWS, ids=lambda case: case.name)
def test_rows_are_stepped_as_a_table_of_their_own(case):
    tx, gradients = case.plain(), [a_gradient(seed) for seed in range(STEPS)]
    table, state = lazily(tx, a_table(), gradients)
    by_rows = of.rows(tx)
    params = {"w": a_table()}
    own = by_rows.init(params)
    donated = copy.deepcopy((params, own))
    step = of.make_step(by_rows, donate=True)
    for gradient in gradients:
        before = copy.deepcopy((params, own))
        updates, new = by_rows.update({"w": gradient}, own, params)
        assert_same(before, (params, own))
        params, own = of.apply_updates(params, updates), new
        kept = list(map(id, tree.leaves(donated)))
        step(*donated, {"w": gradient})
        assert kept == list(map(id, tree.leaves(donated)))
    assert_same((params["w"], own), (table, state))
    assert_same(donated, (params, own))


@pytest.mark.parametrize(
    "make", [of.adamw, of.rowwise_adagrad, of.adagrad, of.lion, of.nadamw], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_behind_an_optimizer(make, dtype):
    table = torch.nn.Embedding(ROWS, WIDTH, sparse=True, dtype=dtype)
    params = {"weight": table.weight.detach().clone()}
    tx = of.rows(make(1e-2))
    optimizer, state = of.Optimizer(table, tx), tx.init(params)
    for seed in range(STEPS):
        table.weight.grad = a_gradient(seed, dtype=dtype)
        optimizer.step()
        updates, state = tx.update({"weight": table.weight.grad}, state, params)
        params = of.apply_updates(params, updates)
        torch.testing.assert_close(table.weight.detach(), params["weight"])


def test_dense_and_absent_gradients_beside_sparse_ones():
    tx, plain = (
        of.rows(of.chain(of.clip_by_global_norm(1.0), of.adam(1e-2))),
        of.chain(of.clip_by_global_norm(1.0), of.adam(1e-2)),
    )
    params = {"table": a_table(), "w": torch.ones(4, dtype=torch.float64), "rest": torch.ones(2, dtype=torch.float64)}
    index = torch.arange(ROWS)
    state = own = tx.init(params)
    everything = a_gradient(3).to_dense()
    sparse = torch.sparse_coo_tensor(index[None], everything, check_invariants=True)
    for _ in range(3):
        gradients = {"table": sparse, "w": torch.full((4,), 2.0, dtype=torch.float64), "rest": None}
        updates, state = tx.update(gradients, state, params)
        dense, own = plain.update({**gradients, "table": everything}, own, params)
        assert updates["rest"] is None
        assert updates["table"].is_sparse
        torch.testing.assert_close(updates["table"].to_dense(), dense["table"], rtol=1e-12, atol=0)
        torch.testing.assert_close(updates["w"], dense["w"], rtol=1e-12, atol=0)
        assert_same(state, own)


def test_no_rows_and_several_sparse_axes():
    tx, params = of.rows(of.adam(1e-2)), {"w": torch.ones(3, 2, 2)}
    none = torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, 2, 2), (3, 2, 2))
    updates, state = tx.update({"w": none}, tx.init(params), params)
    assert torch.equal(of.apply_updates(params, updates)["w"], params["w"])
    assert state[0].count == 1
    pairs = torch.sparse_coo_tensor([[0, 2], [1, 1]], torch.ones(2, 2), (3, 2, 2), check_invariants=True)
    updates, state = tx.update({"w": pairs}, tx.init(params), params)
    changed = of.apply_updates(params, updates)["w"] != 1
    assert changed.nonzero()[:, :2].unique(dim=0).tolist() == [[0, 1], [2, 1]]


def test_masks_see_the_whole_parameter():
    tx = of.rows(of.add_decayed_weights(1.0, mask=of.tree.mask_by(lambda p: len(p) == ROWS)))
    params = {"w": a_table()}
    updates, _ = tx.update({"w": a_gradient(0)}, tx.init(params), params)
    assert not torch.equal(updates["w"].to_dense(), a_gradient(0).to_dense())


AROUND = {
    "apply_if_finite": lambda tx: of.rows(of.apply_if_finite(tx, 5)),
    "conditionally_transform": lambda tx: of.rows(of.conditionally_transform(tx, lambda step, **_: step >= 2)),
    "masked": lambda tx: of.masked(of.rows(tx), {"w": True}),
    "named_chain": lambda tx: of.named_chain(("rows", of.rows(tx)), ("half", of.scale(0.5))),
    "partition": lambda tx: of.partition({"w": of.rows(tx)}, {"w": "w"}),
    "looked at": lambda tx: looking_at_the_state(of.rows(tx)),
}


@of.factory
def looking_at_the_state(inner):
    """Keeps a copy of the state of what is inside, as a wrapper may."""

    def init(params):
        state = inner.init(params)
        return state, tree.map(lambda x: x * 2, state)

    def update(updates, state, params=None, **extra):
        updates, new = inner.update(updates, state[0], params, **extra)
        return updates, (new, tree.map(lambda x: x * 2, new))

    return of.GradientTransformation(init, update)


@pytest.mark.parametrize("wrap", AROUND.values(), ids=list(AROUND))
def test_wrappers_around_it_and_inside_see_what_a_pure_step_gives(wrap):
    tx = wrap(of.adam(1e-2))
    params = {"w": a_table()}
    state = tx.init(params)
    donated, step = copy.deepcopy((params, state)), of.make_step(tx, donate=True)
    for seed in range(4):
        gradient = a_gradient(seed)
        if seed == 2:
            gradient = gradient * float("nan")
        updates, state = tx.update({"w": gradient}, state, params)
        params = of.apply_updates(params, updates)
        step(*donated, {"w": gradient})
        assert_same(donated, (params, state))


def test_a_step_that_raises_has_written_nothing():
    tx = of.chain(of.rows(of.adam(1e-2)), of.stateless(lambda updates, params: 1 / 0))
    params = {"w": a_table()}
    state = tx.init(params)
    before = copy.deepcopy((params, state))
    with pytest.raises(ZeroDivisionError):
        of.make_step(tx, donate=True)(params, state, {"w": a_gradient(0)})
    assert_same(before, (params, state))


def test_what_cannot_be_stepped_by_rows_is_named():
    tx, params = of.rows(of.scale_by_row_col_rms()), {"a": torch.ones(2), "w": a_table()}
    gradients = {"a": torch.ones(2), "w": a_gradient(0)}
    with pytest.raises(ValueError, match=r"rows cannot step w: it has shape \(9, 3\).*shape \(1, 3\)"):
        tx.update(gradients, tx.init(params), params)


MEMORY = {
    "adamw": lambda p: of.Optimizer([p], of.rows(of.adamw(1e-2))),
    "rowwise_adagrad": lambda p: of.Optimizer([p], of.rows(of.rowwise_adagrad(1e-2))),
    "scale_by_sparse_adam": lambda p: of.Optimizer([p], of.chain(of.scale_by_sparse_adam(), of.scale(-0.1))),
    "of.optim.SparseAdam": lambda p: of.optim.SparseAdam([p]),
    "of.optim.Adagrad": lambda p: of.optim.Adagrad([p]),
    "of.optim.SGD": lambda p: of.optim.SGD([p], lr=0.1),
    "of.optim.SGD with momentum": lambda p: of.optim.SGD([p], lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("make", MEMORY.values(), ids=list(MEMORY))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_takes_memory_for_its_rows(make, dtype):
    rows, width, count = 20_000, 8, 10
    p = torch.nn.Parameter(torch.zeros(rows, width, dtype=dtype))
    optimizer = make(p)
    for seed in range(3):
        p.grad = a_gradient(seed, (rows, width), count, dtype)
        with Memory() as memory:
            if seed:  # the first step makes the state
                optimizer.step()
        if not seed:
            optimizer.step()
        assert memory.peak <= 40 * 3 * count * width * 4  # in float32, of up to three steps together


@pytest.mark.parametrize(
    "tx", [of.adam(0.1), of.chain(of.clip_by_global_norm(1.0), of.rows(of.adam(0.1)))], ids=["adam", "clip"]
)
def test_what_takes_no_sparse_gradient_says_so(tx):
    params = {"w": a_table()}
    with pytest.raises(TypeError, match=r"(adam|chain) takes no sparse gradients: put rows\(\.\.\.\) around the whole"):
        tx.update({"w": a_gradient(0)}, tx.init(params), params)


@pytest.mark.parametrize("make", MEMORY.values(), ids=list(MEMORY))
def test_a_scaler_unscales_and_skips(make):
    """Two tables under a scaler, and two without it, of which the second skips by hand the step that overflows."""
    tables = [torch.nn.Embedding(ROWS, WIDTH, sparse=True) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    scaled, plain = (make(table.weight) for table in tables)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(4):
        for table, optimizer in zip(tables, (scaled, plain), strict=True):
            optimizer.zero_grad()
            loss = table(torch.tensor([1, 2, step + 3])).square().sum() * (float("inf") if step == 2 else 1.0)
            if optimizer is scaled:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            elif step != 2:
                loss.backward()
                optimizer.step()
        torch.testing.assert_close(tables[0].weight, tables[1].weight, rtol=1e-6, atol=1e-7)
