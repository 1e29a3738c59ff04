"""8 and 16 ranks in one process: LocalTensorMode, which torch promises to nobody, runs operators for all of them."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import optimfn as of

simulated = pytest.importorskip("torch.distributed._local_tensor", reason="torch has no LocalTensorMode here")
fakes = pytest.importorskip("torch.testing._internal.distributed.fake_pg", reason="torch has no fake groups here")

# Uneven shards, and empty ones on most of the ranks.
SHAPES = {"a": (5, 3), "b": (18,), "c": (33, 4, 2)}
RULES = {
    "adamw": lambda: of.adamw(0.1),
    "clip": lambda: of.chain(of.clip_by_global_norm(1.0), of.adamw(0.1)),
    "finite": lambda: of.apply_if_finite(of.multi_steps(of.adam(0.1), 2), 3),
    "adafactor": lambda: of.adafactor(0.1, min_dim_size_to_factor=2),
    "lamb": lambda: of.lamb(0.1),
    "novograd": lambda: of.novograd(0.1),
    "noise": lambda: of.noisy_sgd(0.1, seed=0),
    "prodigy": lambda: of.prodigy(),
    "dog": lambda: of.dog(),
}


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def steps(tx, params, grads):
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params)
        params = of.apply_updates(params, updates)
    return params


@pytest.fixture(params=[8, 16])
def ranks(request):
    dist.init_process_group("fake", rank=0, world_size=request.param, store=fakes.FakeStore())
    yield request.param
    dist.destroy_process_group()


@pytest.mark.parametrize("name", list(RULES))
def test_many_ranks_step_as_one_process(ranks, name):
    params, grads = drawn(0), [drawn(1), drawn(2)]
    want = steps(RULES[name](), params, grads)
    with simulated.LocalTensorMode(ranks):
        mesh = init_device_mesh("cpu", (ranks,))

        def cut(tree):
            return {n: distribute_tensor(x, mesh, [Shard(0)], src_data_rank=None) for n, x in tree.items()}

        got = steps(RULES[name](), cut(params), [cut(g) for g in grads])
        found = {n: x.full_tensor()._local_tensors for n, x in got.items()}
    for n, own in found.items():
        assert len(own) == ranks
        for x in own.values():
            torch.testing.assert_close(x, want[n], rtol=1e-10, atol=1e-10)
            assert torch.equal(x, own[0])  # all have the same bits


# Replicas: what holds whatever the number of them

WHOLE = {"a": (8, 6), "b": (16,)}  # of which each of 16 can own as much
INNER = of.sgd(0.1, momentum=0.9)


def on_replicas(ranks, make, steps=4):
    """The gradients of each replica at each step, and what follows: parameters by replica, and states."""
    generator = torch.Generator().manual_seed(3)

    def drawn_whole():
        return {n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in WHOLE.items()}

    start, found = drawn_whole(), []
    sequence = [[drawn_whole() for _ in range(ranks)] for _ in range(steps)]

    def together(trees):
        return {n: simulated.LocalTensor({r: tree[n].clone() for r, tree in enumerate(trees)}) for n in WHOLE}

    def apart(tree):
        return [of.tree.map(lambda x, r=r: x._local_tensors[r], tree) for r in range(ranks)]

    with simulated.LocalTensorMode(ranks):
        tx, params = make(init_device_mesh("cpu", (ranks,))), together([start] * ranks)
        state = tx.init(params)
        for grads in sequence:
            updates, state = tx.update(together(grads), state, params)
            params = of.apply_updates(params, updates)
            found.append((apart(params), state))
    return start, sequence, found


def mean_of(trees):
    return {n: torch.stack([tree[n] for tree in trees]).mean(0) for n in trees[0]}


def test_many_replicas_that_meet_keep_their_mean(ranks):
    start, sequence, found = on_replicas(ranks, lambda mesh: of.distributed.local_sgd(INNER, mesh, 2))
    want = steps(INNER, start, [mean_of(grads) for grads in sequence])  # the rule is linear
    for step, (params, *_) in enumerate(found):
        equal = all(torch.equal(own[n], params[0][n]) for own in params for n in WHOLE)
        assert equal == (step % 2 == 1)
    for n, x in mean_of(found[-1][0]).items():
        torch.testing.assert_close(x, want[n], rtol=0, atol=1e-12)


@pytest.mark.parametrize("delay", [0, 1])
def test_many_replicas_take_the_outer_step_of_their_mean(ranks, delay):
    start, sequence, found = on_replicas(
        ranks, lambda mesh: of.distributed.outer_sync(INNER, of.sgd(1.0), mesh, 4, fragments=2, delay=delay)
    )
    params = found[-1][0]
    for own in params:  # the second part has met in the last step, and the first two before
        assert torch.equal(own["b"], params[0]["b"])
        assert not torch.equal(own["a"], params[0]["a"]) or own is params[0]
    # By 1.0 the outer step is the mean itself, of where they were when they sent.
    want = steps(INNER, start, [mean_of(grads) for grads in sequence][: 4 - delay])
    torch.testing.assert_close(params[0]["b"], want["b"], rtol=0, atol=1e-12)


def test_what_many_replicas_have_not_sent_is_all_that_is_missing(ranks):
    """What has arrived and the mean of the errors are all gradients; and every replica has got the same."""
    start, sequence, found = on_replicas(
        ranks, lambda mesh: of.distributed.compressed_mean(mesh, of.distributed.topk(0.25)), 2
    )
    params, state = found[-1]
    for n, x in params[0].items():
        assert all(torch.equal(own[n], x) for own in params)
        error = torch.stack([*state.error[n]._local_tensors.values()]).mean(0)
        total = sum(mean_of(grads)[n] for grads in sequence)
        assert error.abs().max() > 0.1
        torch.testing.assert_close(x - start[n] + error, total, rtol=0, atol=1e-12)
