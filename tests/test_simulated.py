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
