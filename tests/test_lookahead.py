"""`lookahead` behind an optimizer, where its slow parameters are in the state."""

import copy

import pytest
import torch

import optimfn as of

LOOKAHEADS = {
    "sgd": lambda: of.lookahead(of.sgd(0.1), 2, 0.5),
    "adam": lambda: of.lookahead(of.adam(0.1), 3, 0.25),
    "reset": lambda: of.lookahead(of.sgd(0.1, momentum=0.9), 2, 0.5, reset_state=True),
    "clipped": lambda: of.chain(of.clip_by_global_norm(1.0), of.lookahead(of.adam(0.1), 2, 0.5)),
    "partition": lambda: of.partition({"all": of.lookahead(of.adam(0.1), 2, 0.5)}, of.tree.label_by(lambda p: "all")),
    "masked": lambda: of.masked(of.lookahead(of.adam(0.1), 2, 0.5), of.tree.mask_by(lambda p: True)),
    "nested": lambda: of.lookahead(of.lookahead(of.adam(0.1), 2, 0.5), 3, 0.5),
}


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in ((5,), (2, 3), ())]


def give(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def as_pair(tx, params, steps):
    """The fast and slow parameters after every step of the pure pair."""
    pair = of.LookaheadParams.init_synced([p.detach().clone() for p in params])
    state = tx.init(pair)
    for seed in range(steps):
        give(params, seed)
        updates, state = tx.update([p.grad for p in params], state, pair)
        pair = of.apply_updates(pair, updates)
        yield pair


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("name", ["sgd", "adam", "reset"])
def test_the_numbers_are_those_of_the_pair(name, fused):
    tx, params = LOOKAHEADS[name](), parameters(torch.float64)
    opt = of.Optimizer(params, tx, fused=fused)
    for seed, pair in enumerate(as_pair(tx, parameters(torch.float64), 7)):
        give(params, seed)
        opt.step()
        for p, fast, slow in zip(params, pair.fast, pair.slow, strict=True):
            torch.testing.assert_close(p.detach(), fast, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(opt.state[p]["lookahead.slow"], slow, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("fused", [None, False])
def test_at_a_synchronisation_the_two_are_equal_in_all_bits(fused, dtype):
    params = parameters(dtype)
    opt = of.Optimizer(params, LOOKAHEADS["sgd"](), fused=fused)
    for step in range(1, 9):
        give(params, step)
        opt.step()
        equal = [torch.equal(opt.state[p]["lookahead.slow"], p) for p in params]
        assert equal == [step % 2 == 0] * len(params)


@pytest.mark.parametrize("name", LOOKAHEADS)
def test_it_runs_wherever_it_stands_and_goes_on_from_a_checkpoint(name):
    params, others = parameters(), parameters()
    opt, other = of.Optimizer(params, LOOKAHEADS[name]()), of.Optimizer(others, LOOKAHEADS[name]())
    for seed in range(3):
        give(params, seed)
        opt.step()
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for seed in range(3, 6):
        for own, optimizer in ((params, opt), (others, other)):
            give(own, seed)
            optimizer.step()
    assert all(map(torch.equal, params, others))


def test_its_numbers_are_those_of_the_groups():
    params = parameters()
    opt = of.Optimizer(params, of.lookahead, fast_optimizer=of.sgd(0.1), sync_period=1, slow_step_size=0.5)
    assert opt.param_groups[0]["slow_step_size"] == 0.5
    opt.param_groups[0].update(slow_step_size=0.0)
    before = [p.detach().clone() for p in params]
    give(params, 0)
    opt.step()  # at every synchronisation back to where the slow ones are
    torch.testing.assert_close(params, before, check_stride=False)


def test_a_late_parameter_begins_where_it_is():
    params = parameters()
    opt = of.Optimizer(params, LOOKAHEADS["adam"]())
    late, start = params[2], params[2].detach().clone()
    for seed in range(5):
        give(params, seed)
        late.grad = None
        opt.step()
    assert late not in opt.state
    late.grad = torch.ones(())
    opt.step()
    torch.testing.assert_close(late.detach(), start - 0.1)
    assert torch.equal(opt.state[late]["lookahead.slow"], start)


def test_slow_in_state_wants_no_pair():
    tx = of.lookahead(of.sgd(1.0), 2, 0.5, slow_in_state=True)
    with pytest.raises(TypeError, match="wants the fast parameters alone"):
        tx.init(of.LookaheadParams.init_synced(torch.ones(1)))
