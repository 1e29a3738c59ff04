"""Results of pure steps in memory that is used again: nobody who still holds one ever sees it change."""

import copy
import gc
import io
import itertools
import multiprocessing
import pickle
import sys
import threading
import weakref

import pytest
import torch
from helpers import assert_trees_equal

import optimfn as of
from optimfn.fused.run import _recycled, _results, _settings

SIZE = (1024, 2100)  # 8.2 MB, with a momentum more than 16 MB, and no whole number of pages

pytestmark = pytest.mark.skipif(not _recycled._MADVISE, reason="this system has no huge pages")


class Loop:
    """Pure steps, carried on; the values of a step tell which one it was."""

    def __init__(self, tx=None, params=None):
        tx = tx or of.sgd(1.0, momentum=0.5)
        self.step, self.grads = of.make_step(tx, backend="fused"), {"w": torch.full(SIZE, -1.0)}
        self.params = params or {"w": torch.zeros(SIZE)}
        self.state = tx.init(self.params)

    def __call__(self, times=1):
        for _ in range(times):
            self.params, self.state = self.step(self.params, self.state, self.grads)
        return self.params.get("w")

    @property
    def pool(self):
        return self.step._ran._pool

    @property
    def lent(self):
        return sum(len(shelf.lent) for shelf in self.pool._shelves.values())

    @property
    def free(self):
        return sum(len(shelf.free) for shelf in self.pool._shelves.values())


@pytest.fixture
def loop():
    made = Loop()
    made()
    return made


def test_memory_of_dropped_results_is_used_again_and_one_set_is_kept(loop):
    loop(2)
    seen = set()
    for _ in range(6):
        seen.add(loop().data_ptr())
        assert (loop.lent, loop.free) == (2, 2)
    assert len(seen) <= 4
    assert_trees_equal(loop.params["w"], torch.full(SIZE, sum(2 - 0.5**k for k in range(9))), rtol=1e-6, atol=0.0)


def test_many_sets_that_go_at_once_leave_one(loop):
    kept = [loop() for _ in range(4)] + [loop.state]
    assert loop.lent > 4
    del kept
    gc.collect()
    assert (loop.lent, loop.free) == (2, 2)


HOLDERS = {
    "the tensor": lambda x: x,
    "a view": lambda x: x[3:, 5],
    "an alias": lambda x: x.detach(),
    "a view of a storage": lambda x: torch.empty(0).set_(x.untyped_storage(), 8, (4, 4), (4, 1)),
    "a bare storage": lambda x: x.untyped_storage(),
    "an array": lambda x: x.numpy(),
    "a row of an array": lambda x: x.numpy()[7],
    "a capsule": lambda x: x.__dlpack__(),
    "from a capsule": lambda x: torch.from_dlpack(x.__dlpack__()),
    "a buffer": lambda x: memoryview(x.numpy()),
    "saved by autograd": lambda x: (torch.ones((), requires_grad=True) * x).sum(),
    "a parameter": lambda x: torch.nn.Parameter(x),
    "data of another": lambda x: _set_data(torch.zeros(1), x),
}


def _set_data(target, x):
    target.data = x
    return target


@pytest.mark.parametrize("holder", HOLDERS)
def test_who_holds_a_result_in_whatever_way_keeps_its_memory(loop, holder):
    held, start, end = HOLDERS[holder](loop()), loop.params["w"].data_ptr(), 0
    end = start + loop.params["w"].nbytes
    for _ in range(4):
        assert not start <= loop().data_ptr() < end
        assert not start <= next(x for x in of.tree.leaves(loop.state) if x.ndim).data_ptr() < end
    if isinstance(held, torch.Tensor) and held.grad_fn is not None:
        held.backward()
    del held
    gc.collect()
    assert (loop.lent, loop.free) == (2, 2)


def test_old_values_stay_and_are_those_of_eager_steps():
    loop, other = Loop(of.adamw(0.1)), Loop(of.adamw(0.1))
    other.step = of.make_step(of.adamw(0.1), backend="eager")
    for trees in (loop, other):
        trees.grads = {"w": torch.linspace(-1, 1, SIZE[0] * SIZE[1]).view(SIZE)}
    held = []
    for _ in range(3):
        loop(), other()
        held.append(((loop.params, loop.state), (other.params, other.state)))
    for got, want in held:
        assert_trees_equal(got, want, rtol=3e-6, atol=1e-7)


def test_a_result_is_a_tensor_like_any_other(loop):
    x = loop(2)
    assert x._base is None
    assert x.is_leaf
    assert x.storage_offset() == 0
    assert x.untyped_storage().nbytes() == x.nbytes
    version = x._version
    x.add_(1)
    assert x._version == version + 1
    assert not x.is_shared()
    for other in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x), _saved(x), x.clone()):
        assert torch.equal(other, x)
        assert other.data_ptr() != x.data_ptr()


def _saved(x):
    file = io.BytesIO()
    torch.save(x, file)
    assert file.tell() < x.nbytes + 10_000
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_share_memory_moves_out(loop):
    x = loop(2)
    want = x.clone()
    x.share_memory_()
    assert loop.lent == 1
    loop(3)
    assert torch.equal(x, want)


def test_set_and_data_let_go(loop):
    x, other = loop(2), torch.ones(3)
    loop.params = {"w": x.clone()}
    x.set_(other)
    assert loop.lent == 1
    loop(3)
    assert x.tolist() == [1, 1, 1]


def test_a_result_can_be_made_smaller_but_not_larger(loop):
    x = loop(2)
    loop.params = {"w": x.clone()}
    x.resize_(10)
    want = x.clone()
    with pytest.raises(RuntimeError, match="not resizable"):
        x.resize_(SIZE[0] * SIZE[1] + 1)
    loop(3)
    assert torch.equal(x.view(-1)[:10], want)


def test_results_may_be_dropped_by_other_threads(loop):
    made = Loop()
    made()
    errors = []

    def drop(things):
        try:
            for x in things:
                assert torch.equal(x, x.flatten()[0].expand_as(x))
        except AssertionError as error:
            errors.append(error)

    threads = []
    for _ in range(6):
        threads.append(threading.Thread(target=drop, args=([made(), loop()],)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert not errors
    del threads
    gc.collect()
    assert (made.lent, loop.lent) == (2, 2)
    assert made.free <= 2


def test_one_step_in_several_threads(loop):
    values, params, state = {}, loop.params, loop.state

    def work(name):
        own = params, state
        for _ in range(4):
            own = loop.step(*own, loop.grads)
        values[name] = own[0]["w"]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want = values.pop(0)
    assert len({x.data_ptr() for x in [want, *values.values()]}) == 3
    for x in values.values():
        assert torch.equal(x, want)


def _child(loop, pipe):
    before = loop.params["w"].clone()
    loop.params["w"].zero_()
    loop(3)
    pipe.send((before[0, 0].item(), loop.params["w"][0, 0].item()))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_a_forked_child_does_not_write_into_its_parent(loop):
    loop(2)
    want, ours = loop.params["w"].clone(), None
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    child = fork.Process(target=_child, args=(loop, theirs))
    child.start()
    assert ours.poll(60)
    before, after = ours.recv()
    child.join(60)
    assert child.exitcode == 0
    assert torch.equal(loop.params["w"], want)
    assert before == want[0, 0]
    assert after != before
    loop(2)
    assert torch.equal(loop.params["w"], loop.params["w"].flatten()[0].expand(SIZE))


def test_a_step_may_go_before_its_results():
    loop = Loop()
    x = loop(3)
    want, pool = x.clone(), weakref.ref(loop.pool)
    shelves = list(loop.pool._shelves.values())
    loop.step = None
    del loop
    gc.collect()
    if pool() is None:  # the program may live on, shared
        assert all(not shelf.free for shelf in shelves)
    assert torch.equal(x, want)
    del x
    if pool() is None:
        assert not any(shelf.free or shelf.lent for shelf in shelves)


def test_release_memory_gives_back_what_nobody_uses_and_nothing_else(loop):
    loop(2)
    want = loop.params["w"].clone()
    assert of.fused.release_memory() >= 2 * want.nbytes
    assert (loop.lent, loop.free) == (2, 0)
    assert of.fused.release_memory() == 0
    assert torch.equal(loop.params["w"], want)
    loop(2)
    assert (loop.lent, loop.free) == (2, 2)


def test_what_was_idle_for_some_steps_is_given_back(loop):
    loop(2)
    other = Loop()
    other(2)
    assert loop.free == 2
    for _ in range(2 * _recycled._IDLE):
        other()
    assert (loop.free, other.free) == (0, 2)
    assert (loop.lent, other.lent) == (2, 2)


def test_inference_mode():
    with torch.inference_mode():
        loop = Loop()
        x = loop(3)
        assert x.is_inference()


def test_small_results_are_allocated_as_ever():
    loop = Loop(params={"w": torch.zeros(SIZE), **{f"b{i}": torch.zeros(3) for i in range(3)}})
    loop.grads |= {f"b{i}": torch.ones(3) for i in range(3)}
    loop(3)
    assert loop.lent == 2
    loop.params["b0"].resize_(100)


PAST = [(of.adamw, torch.bfloat16), (of.adamw, torch.float32), (of.lion, torch.float64), (of.sgd, torch.float16)]


@pytest.mark.parametrize(("make", "dtype"), PAST, ids=[f"{make.__name__}-{dtype}" for make, dtype in PAST])
def test_results_past_the_caches_are_those_of_donating_steps(make, dtype):
    options = {"momentum": 0.9} if make is of.sgd else {}
    tx, generator = make(0.1, **options), torch.Generator().manual_seed(0)
    # Transposed, with ends that are no whole number of lines, of one chunk and of several.
    shapes = {"a": (1500, 2731), "b": (127, 129), "c": (70_001,), "d": (1_000_003,)}
    params = {k: torch.randn(shape, generator=generator).to(dtype) for k, shape in shapes.items()}
    params["a"] = params["a"].T
    grads = {k: torch.randn(p.shape, generator=generator).to(dtype) for k, p in params.items()}
    step, donating = of.make_step(tx, backend="fused"), of.make_step(tx, donate=True, backend="fused")
    got = params, tx.init(params)
    want = copy.deepcopy(got)
    for _ in range(2):
        got = step(*got, grads)
        donating(*want, grads)
    assert_trees_equal(got, want, rtol=0.0, atol=0.0)


def test_absent_gradients_take_no_new_memory():
    params = {"a": torch.zeros(SIZE), "b": torch.zeros(SIZE)}
    loop = Loop(params=params)
    for some in (("a", "b"), ("a",), ("b",), ("a", "b"), ("a",)):
        loop.grads = {k: torch.ones(SIZE) if k in some else None for k in params}
        before = loop.params
        loop()
        assert all((loop.params[k] is before[k]) == (k not in some) for k in params)
        assert loop.lent <= 8


def test_a_setting_turns_it_off(monkeypatch):
    loop = Loop()
    assert of.fused.memory_settings(recycle=False).recycle is False
    try:
        loop(3)
        assert loop.lent == 0
        loop.params["w"].resize_(SIZE[0] * SIZE[1] + 1)
    finally:
        monkeypatch.setattr(_settings.settings, "_said", {})
    assert of.fused.memory_settings().recycle
    monkeypatch.setenv("OPTIMFN_RECYCLE", "0")
    assert not of.fused.memory_settings().recycle
    monkeypatch.setenv("OPTIMFN_RECYCLE", "yes")
    with pytest.raises(ValueError, match=r"OPTIMFN_RECYCLE.*yes"):
        of.fused.memory_settings()
    with pytest.raises(TypeError, match=r"recycle.*1"):
        of.fused.memory_settings(recycle=1)


def test_where_nothing_can_be_mapped_steps_go_on(monkeypatch, loop):
    of.fused.release_memory()

    def refuse(*args, **kwargs):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(_recycled.mmap, "mmap", refuse)
    want = loop.params["w"] + 2
    assert loop()[0, 0] > 0
    assert loop.params["w"].shape == want.shape
    assert loop.lent <= 2


def test_a_system_without_huge_pages_changes_nothing(monkeypatch):
    monkeypatch.setattr(_recycled, "_MADVISE", False)
    tx = of.sgd(1.0, momentum=0.25)  # no program of another test
    loop = Loop(tx)
    loop(3)
    assert not loop.step._ran.code.whole.results.large
    assert _results.is_large is _recycled.is_large


def test_blocks_fill_their_mapping_without_overlap():
    shelf = _recycled._Shelf(3 * _recycled._PAGE)
    shelf.most = 5
    lent = [shelf.lend(2 * _recycled._PAGE) for _ in range(13)]
    spans = sorted((torch.frombuffer(x, dtype=torch.uint8).data_ptr(), len(x)) for x in lent)
    assert all(start + size <= after for (start, size), (after, _) in itertools.pairwise(spans))
    assert all(start % 64 == 0 for start, _ in spans)
    del lent
    assert not shelf.lent
    assert len(shelf.free) == 5
    assert sys.getrefcount(shelf) == 2
