"""States on the host: on pretended devices, which have no values, and on a real one where there is one."""

import pytest
import torch
from helpers import assert_trees_equal
from torch._subclasses.fake_tensor import FakeTensorMode

import optimfn as of

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICE = "lazy"  # one that torch knows, and that needs no library while nothing is computed
RULES = {
    "adamw": of.adamw(1e-2),
    "clipped, averaged": of.chain(of.clip_by_global_norm(1.0), of.adamw(1e-2), of.params_ema(0.9)),
    "quantised": of.quantize_state(of.adamw(1e-2), "companded8", min_size=1),
    "of factors": of.adafactor(1e-2, momentum=0.9, min_dim_size_to_factor=8),
    "of matrices": of.soap(1e-2, precondition_frequency=2),
    "partitioned": of.partition({"a": of.sgd(0.1, 0.9), "b": of.lion(1e-3)}, {"w": "a", "b": "b", "n": "a"}),
}
every_rule = pytest.mark.parametrize("name", RULES)


def tensors(device):
    return {
        "w": torch.ones(64, 48, device=device),
        "b": torch.ones(3, device=device),
        "n": torch.ones(9, device=device),
    }


@every_rule
def test_a_state_is_fetched_and_returned(name):
    # A fake tensor refuses operators whose inputs lie on several devices.
    with FakeTensorMode(), torch.no_grad():
        tx, params = of.offload(RULES[name], min_size=9), tensors(DEVICE)
        state, grads = tx.init(params), tensors(DEVICE) | {"n": None}
        where = [x.device for x in of.tree.leaves(state)]
        for x in of.tree.leaves(state):
            assert not x.ndim or x.numel() == 0 or x.device.type == ("cpu" if x.numel() >= 9 else DEVICE)
        for _ in range(2):
            updates, state = tx.update(grads, state, params)
            assert {x.device.type for x in of.tree.leaves(updates)} == {DEVICE}
            assert [x.device for x in of.tree.leaves(state)] == where
        assert {x.device.type for x in of.tree.leaves(of.eval_params(tx, state, params))} == {DEVICE}


def test_what_is_without_a_gradient_is_not_fetched():
    with FakeTensorMode(), torch.no_grad():
        tx, params = of.offload(of.adamw(1e-2), min_size=9), tensors(DEVICE)
        state = tx.init(params)
        new = tx.update(tensors(DEVICE) | {"n": None}, state, params)[1]
        assert new[0].mu["n"] is state[0].mu["n"]
        assert new[0].mu["w"] is not state[0].mu["w"]


@every_rule
def test_where_nothing_moves_nothing_changes(name):
    outer, params = of.offload(RULES[name], min_size=1), of.tree.map(torch.randn_like, tensors("cpu"))
    steps = [of.make_step(tx, backend=backend) for tx in (RULES[name], outer) for backend in ("eager", "auto")]
    ran = [(params, tx.init(params)) for tx in (RULES[name], RULES[name], outer, outer)]
    for _ in range(3):
        grads = of.tree.map(torch.randn_like, params)
        ran = [step(*trees, grads) for step, trees in zip(steps, ran, strict=True)]
        assert_trees_equal(ran[0], ran[2])
        assert_trees_equal(ran[1], ran[3])
    assert steps[1].explain().splitlines()[1:] == steps[3].explain().splitlines()[1:]


def big(device):
    generator = torch.Generator().manual_seed(0)
    return {f"w{i}": torch.randn(512, 1024, generator=generator).to(device) for i in range(16)}


@needs_cuda
@pytest.mark.parametrize("donate", [False, True])
def test_on_a_device_steps_are_those_of_the_rule(donate):
    tx = of.chain(of.clip_by_global_norm(1.0), of.adamw(1e-2))
    runs = []
    for rule in (tx, of.offload(tx)):
        params, step = big("cuda"), of.make_step(rule, donate=donate, backend="eager")
        state = rule.init(params)
        for _ in range(3):
            params, state = step(params, state, of.tree.map(torch.sin, params))
        runs.append((params, state))
    assert all(x.is_cpu and x.is_pinned() for x in of.tree.leaves(runs[1][1][1][0].mu))
    assert_trees_equal(of.tree.map(torch.Tensor.cpu, runs[0]), of.tree.map(torch.Tensor.cpu, runs[1]))


@needs_cuda
def test_a_donating_step_holds_a_part_of_the_state():
    params, tx = big("cuda"), of.offload(of.adamw(1e-2))
    step, state, grads = of.make_step(tx, donate=True), tx.init(params), big("cuda")
    step(params, state, grads)
    torch.cuda.synchronize(), torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(params, state, grads)
    # A part is a quarter of the parameters: of it two moments, their next values, and what is on the way to them.
    assert torch.cuda.max_memory_allocated() - before < 2 * sum(p.nbytes for p in params.values())


@needs_cuda
def test_an_optimizer_loads_where_the_state_lies():
    models = [torch.nn.Linear(256, 256, device="cuda") for _ in range(2)]
    opts = [of.Optimizer(model, of.offload(of.adamw(1e-2))) for model in models]
    models[0](torch.ones(2, 256, device="cuda")).sum().backward()
    opts[0].step()
    opts[1].load_state_dict(opts[0].state_dict())
    mine, theirs = (opt.state[model.weight] for opt, model in zip(opts, models, strict=True))
    assert_trees_equal(dict(mine), dict(theirs))
    assert [x.device for x in theirs.values()] == [x.device for x in mine.values()]
    assert any(x.is_cpu and x.ndim for x in theirs.values())
