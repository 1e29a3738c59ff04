"""`params_ema` and `params_swa` beside torch's AveragedModel."""

import pytest
import torch
from helpers import assert_close_to, assert_trees_equal, like, params_tree, plain_params, rough_gradients
from torch.optim import swa_utils

import optimfn as of

STEPS = 40
AVERAGES = [of.params_ema(0.9), of.params_ema(0.9, debias=True), of.params_swa(1, 2)]
each = pytest.mark.parametrize("tx", AVERAGES, ids=repr)


class Holder(torch.nn.Module):
    """A module of plain parameters."""

    def __init__(self, params):
        super().__init__()
        for name, p in params.items():
            self.register_parameter(name, torch.nn.Parameter(p.clone()))


def averaged(state):
    """The average, whatever the rule calls it."""
    return of.tree.get(state, "ema", default=of.tree.get(state, "average"))


def train(tx, params, gradients):
    """`(params, state)` after every step of Adam with an average at its end."""
    chained = of.chain(of.adam(0.1), tx)
    step, state = of.make_step(chained), chained.init(params)
    for grads in gradients:
        params, state = step(params, state, grads)
        yield params, state


def follow_torch(params, gradients, counts=lambda step: True, **kwargs):
    """The parameters of an AveragedModel after every step of torch's Adam."""
    model = Holder(params)
    average = swa_utils.AveragedModel(model, **kwargs)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for step, grads in enumerate(gradients):
        for name, p in model.named_parameters():
            p.grad = grads[name].clone()
        optimizer.step()
        if counts(step):
            average.update_parameters(model)
        yield dict(average.module.named_parameters()), average.n_averaged


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_ema_equals_torch(decay):
    params = plain_params()
    gradients = rough_gradients(params, STEPS)
    expected = follow_torch(params, gradients, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay))
    for d in (decay, torch.tensor(decay, dtype=torch.float64)):
        if isinstance(d, torch.Tensor):
            expected = follow_torch(params, gradients, avg_fn=swa_utils.get_ema_avg_fn(decay))
        for (_, state), (want, _) in zip(train(of.params_ema(d), params, gradients), expected, strict=True):
            assert_close_to(averaged(state), {name: p.detach() for name, p in want.items()}, 1e-12)


@pytest.mark.parametrize(("start", "every"), [(0, 1), (10, 1), (3, 4), (100, 1)])
def test_swa_equals_torch(start, every):
    params = plain_params()
    gradients = rough_gradients(params, STEPS)
    expected = follow_torch(params, gradients, lambda step: step >= start and (step - start) % every == 0)
    for (_, state), (want, n) in zip(train(of.params_swa(start, every), params, gradients), expected, strict=True):
        assert_close_to(averaged(state), {name: p.detach() for name, p in want.items()}, 1e-12)
        assert of.tree.get(state, "n_averaged") == n


def test_debiased_ema_is_the_mean_with_powers_of_the_decay_for_weights():
    params = plain_params()
    seen = []
    for after, state in train(of.params_ema(0.9, debias=True), params, rough_gradients(params, STEPS)):
        seen.append(after)
        weights = [0.9 ** (len(seen) - 1 - i) for i in range(len(seen))]
        want = {name: sum(w * p[name] for w, p in zip(weights, seen, strict=True)) / sum(weights) for name in params}
        assert_close_to(averaged(state), want, 1e-12)


@each
def test_the_average_of_a_constant_is_the_constant(tx):
    params = plain_params()
    state = tx.init(params)
    for _ in range(10):
        _, state = tx.update(of.tree.zeros_like(params), state, params)
        assert_trees_equal(averaged(state), params, rtol=1e-15)


@each
def test_updates_pass_as_they_are_and_the_average_shares_no_memory(tx):
    params = plain_params()
    state = tx.init(params)
    assert_trees_equal(averaged(state), params)
    for _ in range(3):
        grads = like(params)
        updates, state = tx.update(grads, state, params)
        assert all(updates[name] is grads[name] for name in params)
        theirs = {x.data_ptr() for x in of.tree.leaves((params, grads))}
        assert not theirs & {x.data_ptr() for x in of.tree.leaves(state)}


@each
def test_a_parameter_without_gradient_counts_as_it_is(tx):
    params = plain_params()
    first, second = like(params), {**like(params), "b": None}
    zero = {**second, "b": torch.zeros_like(params["b"])}
    state = tx.update(first, tx.init(params), params)[1]
    params = of.apply_updates(params, first)
    updates, absent = tx.update(second, state, params)
    assert updates["b"] is None
    assert_trees_equal(absent, tx.update(zero, state, params)[1])
    assert_trees_equal(tx.update(dict.fromkeys(params), tx.init(params), params)[1][-1], params, rtol=1e-15)


@each
@pytest.mark.parametrize("params", [{}, (), [], {"a": None}, {"a": torch.ones(3, 2).mT}], ids=repr)
def test_ragged_trees(tx, params):
    _, state = tx.update(params, tx.init(params), params)
    assert of.tree.structure(state) == of.tree.structure(tx.init(params))
    assert of.tree.structure(averaged(state)) == of.tree.structure(params)


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_averages_of_low_precision_are_kept_in_float32(tx, dtype):
    params = params_tree(dtype)
    updates, state = tx.update(like(params), tx.init(params), params)
    assert {x.dtype for x in of.tree.leaves(averaged(state))} == {torch.float32}
    assert {x.dtype for x in of.tree.leaves(updates)} == {torch.float32}  # `apply_updates` rounds them


@each
def test_the_state_of_parameters_that_require_grad_does_not(tx):
    params = torch.ones(2, requires_grad=True)
    assert not any(x.requires_grad for x in of.tree.leaves(tx.init(params)))


@each
def test_a_placeholder_shows_where_the_average_is(tx):
    state = tx.init(plain_params())
    halved = of.tree.map_params(tx, lambda x: x / 2, state)
    assert_trees_equal(averaged(halved), of.tree.scale(0.5, averaged(state)))
    assert_trees_equal(halved[:-1], state[:-1])


@pytest.mark.parametrize("debias", [False, True])
def test_a_decay_tensor_is_read_at_every_step(debias):
    params, decay = plain_params(), torch.tensor(0.9, dtype=torch.float64)
    tx, other = of.params_ema(decay, debias), of.params_ema(0.5, debias)
    state = tx.update(like(params), tx.init(params), params)[1]
    decay.fill_(0.5)
    grads = like(params)
    assert_trees_equal(tx.update(grads, state, params)[1], other.update(grads, state, params)[1], rtol=1e-14)
