"""Donating steps of the rule itself, taken some leaves at a time: the same numbers in less memory, or all at once."""

import weakref

import pytest
import torch
from cases import CASES
from helpers import assert_trees_equal, params_tree, plain_params, rough_gradients
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

import optimfn as of
from optimfn._in_place import _parts
from optimfn._in_place._parts import Parts


@pytest.fixture
def small(monkeypatch):
    """Also steps of few parameters go in parts."""
    monkeypatch.setattr(_parts, "_LEAST", 0)
    monkeypatch.setattr(_parts, "_LEAST_LEAF", 0)


class Memory(TorchDispatchMode):
    """The most that operators hold at once of what they have made."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {id(x) for x in _pytree.tree_leaves((args, kwargs))}
        given |= {own._cdata for x in _pytree.tree_leaves((args, kwargs)) for own in _storages(x)}
        for x in _pytree.tree_leaves(out):
            for own in _storages(x):
                if own._cdata not in given | self.known:
                    self._made(own)
        return out

    def _made(self, storage):
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key, size):
        self.known.discard(key)
        self.live -= size


def _storages(x):
    if not isinstance(x, torch.Tensor):
        return []
    return [own.untyped_storage() for own in ([x._indices(), x._values()] if x.is_sparse else [x])]


def _tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {f"p{i}": torch.randn(64, 64, generator=generator) for i in range(48)}


def _parameters():
    params = {name: torch.nn.Parameter(p) for name, p in _tensors(0).items()}
    for p, g in zip(params.values(), _tensors(1).values(), strict=True):
        p.grad = g
    return params


def _made_step(tx, backend="eager"):
    params, grads = _tensors(0), _tensors(1)
    state, step = tx.init(params), of.make_step(tx, donate=True, backend=backend)
    return lambda **extra: step(params, state, grads, **extra)


def _optimizer(tx, **options):
    return of.Optimizer(_parameters().items(), tx, **options).step


def _under_autocast(step):
    def under():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            step()

    return under


def _with(step, *args, **extra):
    return lambda: step(*args, **extra)


def _scaled(step):
    """As `GradScaler` leaves unscaling to a step."""
    step.__self__.found_inf, step.__self__.grad_scale = torch.zeros(1), torch.full((1,), 4.0)
    return step


SCHEDULED = of.adamw(of.cosine_decay_schedule(0.1, 100))
SGD, ADAMW = of.sgd(0.1, momentum=0.9), of.adamw(1e-3)
CLIPPED = of.chain(of.clip_by_global_norm(1.0), of.adamw(1e-3))
STEPS = {
    **{
        f"{name} {way}": (lambda tx=tx, make=make: make(tx))
        for name, tx in {"sgd": SGD, "adamw": ADAMW, "clipped": CLIPPED}.items()
        for way, make in {
            "eager": _made_step,
            "watched": lambda tx: _made_step(tx, "auto"),
            "under autocast": lambda tx: _under_autocast(_made_step(tx, "auto")),
            "Optimizer": lambda tx: _optimizer(tx, fused=False),
            "Optimizer under autocast": lambda tx: _under_autocast(_optimizer(tx)),
        }.items()
    },
    **{
        f"scheduled {way}": make
        for way, make in {
            "eager": lambda: _made_step(SCHEDULED),
            "Optimizer": lambda: _optimizer(SCHEDULED, fused=False),
            "clipped Optimizer": lambda: _optimizer(of.chain(of.clip_by_global_norm(1.0), SCHEDULED), fused=False),
        }.items()
    },
    "with arguments": lambda: _with(_made_step(ADAMW), value=torch.ones(()), note="x", history=[1, 2], fn=print),
    "Optimizer with a closure": lambda: _with(_optimizer(CLIPPED, fused=False), lambda: torch.ones(())),
    "Optimizer under a scaler": lambda: _scaled(_optimizer(ADAMW, fused=False)),
    "of.optim.AdamW with a closure": lambda: _with(
        of.optim.AdamW(_parameters().values(), fused=False).step, lambda: torch.ones(())
    ),
    "of.optim.Adagrad": lambda: of.optim.Adagrad(_parameters().values(), lr_decay=0.1, fused=False).step,
    "of.optim.AdamW": lambda: of.optim.AdamW(_parameters().values(), fused=False).step,
    "of.optim.AdamW watched": lambda: of.optim.AdamW(_parameters().values()).step,
    "of.optim.SGD, two groups": lambda: (
        of.optim.SGD(
            [{"params": list(_parameters().values())[:20]}, {"params": list(_parameters().values())[20:], "lr": 0.1}],
            momentum=0.9,
            fused=False,
        ).step
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_of_operators_hold_at_most_twice_the_parameters(name):
    step = STEPS[name]()
    step()
    for _ in range(2):
        with Memory() as memory:
            step()
        assert 0 < memory.peak <= 2 * 48 * 64 * 64 * 4


def _patterns(params, steps):
    """Gradients of which one after the other is absent."""
    names = list(params)
    for i, grads in enumerate(rough_gradients(params, steps)):
        yield grads if i % 3 == 0 else {name: None if name == names[i % len(names)] else g for name, g in grads.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if "ragged" not in case.skips], ids=lambda case: case.name)
def test_steps_in_parts_give_the_numbers_of_whole_steps_bit_for_bit(case, dtype, small):
    if (dtype.is_complex and "complex" in case.skips) or "dtype" in case.skips or "absent" in case.skips:
        pytest.skip("not for these leaves")
    torch.manual_seed(0)
    params = of.tree.cast(plain_params(), dtype)
    tx = case.plain()
    own, expected = of.tree.map(torch.clone, (params, tx.init(params))), (params, tx.init(params))
    donating, pure = of.make_step(tx, donate=True, backend="eager"), of.make_step(tx, backend="eager")
    for grads in _patterns(params, 7):
        torch.manual_seed(1)
        expected = pure(*expected, grads, **case.extra)
        torch.manual_seed(1)
        donating(*own, grads, **case.extra)
        assert_trees_equal(own, expected)


@pytest.mark.parametrize("case", [case for case in CASES if "ragged" not in case.skips], ids=lambda case: case.name)
def test_steps_in_parts_take_ragged_trees(case, small):
    torch.manual_seed(0)
    params = params_tree()
    tx = case.plain()
    own, expected = of.tree.map(torch.clone, (params, tx.init(params))), (params, tx.init(params))
    donating, pure = of.make_step(tx, donate=True, backend="eager"), of.make_step(tx, backend="eager")
    for grads in rough_gradients(params, 3):
        torch.manual_seed(1)
        expected = pure(*expected, grads, **case.extra)
        torch.manual_seed(1)
        donating(*own, grads, **case.extra)
        assert_trees_equal(own, expected)


def test_most_rules_of_the_table_are_stepped_in_parts(small):
    def is_split(case):
        tx, params = case.plain(), plain_params()
        with torch.no_grad():
            return Parts(tx).take(params, tx.init(params), rough_gradients(params, 1)[0], {})

    split = {case.name for case in CASES if not case.extra and is_split(case)}
    assert {"adam", "adamw", "sgd", "lion"} <= split
    assert len(split) >= len(CASES) / 3


def _raises_late(updates, params):
    raise RuntimeError("no")


FAULTS = {
    "a function of others": (of.chain(of.sgd(0.1), of.stateless_with_tree_map(_raises_late)), lambda p, g: None),
    "a last gradient of another shape": (of.adam(0.1), lambda p, g: g.update(p47=torch.ones(3, 5))),
    "a last parameter that overlaps itself": (of.adam(0.1), lambda p, g: p.update(p47=torch.ones(()).expand(64, 64))),
    "a last parameter twice": (of.adam(0.1), lambda p, g: p.update(p47=p["p46"])),
    "a last parameter in the memory of another": (of.adam(0.1), lambda p, g: p.update(p47=p["p46"].view(64, 64))),
    "a last gradient that is no tensor": (of.adam(0.1), lambda p, g: g.update(p47=1.0)),
    "a missing gradient": (of.adam(0.1), lambda p, g: g.pop("p47")),
    "a last parameter of integers": (of.adam(0.1), lambda p, g: p.update(p47=torch.ones(64, 64, dtype=torch.int64))),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_step_in_parts_that_raises_has_written_nothing(name):
    tx, spoil = FAULTS[name]
    params, grads = _tensors(0), _tensors(1)
    state = tx.init(params)
    step = of.make_step(tx, donate=True, backend="eager")
    spoil(params, grads)
    before = of.tree.map(torch.clone, (params, state))
    try:
        step(params, state, grads)
    except Exception:
        assert_trees_equal((params, state), before)
    else:
        assert name == "a last parameter of integers"


def test_what_shares_memory_with_a_parameter_is_read_before_it_is_written(small):
    rate = torch.ones(48)
    params = {f"p{i}": rate[i : i + 1] for i in range(48)}
    expected = of.tree.map(lambda p: torch.zeros_like(p), params)
    tx = of.scale(-1.0)
    step = of.make_step(tx, donate=True, backend="eager")
    backwards = dict(zip(params, reversed(params.values()), strict=True))  # each gradient is another parameter
    step(params, tx.init(params), backwards)
    assert_trees_equal(params, expected)
    rate.fill_(2.0)
    tx = of.chain(of.scale(rate[0]), of.scale(-1.0))
    of.make_step(tx, donate=True, backend="eager")(params, tx.init(params), of.tree.map(torch.ones_like, params))
    assert_trees_equal(params, expected)


def test_a_function_of_others_sees_the_whole_step_at_once():
    seen = []

    def note(update, param):
        seen.append(param)
        return update

    params, grads = _tensors(0), _tensors(1)
    tx = of.chain(of.scale(-0.1), of.stateless_with_tree_map(note))
    of.make_step(tx, donate=True, backend="eager")(params, tx.init(params), grads)
    assert [id(x) for x in seen] == [id(p) for p in params.values()]


def test_gradients_that_come_and_go_are_tried_once(monkeypatch):
    tried = []
    succeeds = _parts._succeeds
    monkeypatch.setattr(_parts, "_succeeds", lambda *args: tried.append(1) or succeeds(*args))
    params, tx = _tensors(0), of.adam(0.1)
    state, step = tx.init(params), of.make_step(tx, donate=True, backend="eager")
    for i in range(10):
        step(params, state, {name: g if (int(name[1:]) + i) % 3 else None for name, g in _tensors(i).items()})
    assert len(tried) == 1
    assert state[0].count == 10
