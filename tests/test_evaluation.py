"""Parameters to evaluate: found wherever they are kept, swapped in and back exactly."""

import copy
import io

import pytest
import torch
from cases import CASES
from helpers import assert_trees_equal, like, plain_params

import optimfn as of

MEANS = {
    "ema": lambda: of.chain(of.adam(0.1), of.params_ema(0.5)),
    "swa": lambda: of.chain(of.adam(0.1), of.params_swa()),
    "lookahead": lambda: of.lookahead(of.adam(0.1), 3, 0.5, slow_in_state=True),
}
SAID = {**MEANS, "schedule_free": lambda: of.schedule_free_sgd(0.1), "gpa": lambda: of.gpa(of.sgd(0.1))}
WRAPPED = {
    "chain": lambda tx: of.chain(of.clip(1.0), tx, of.identity()),
    "named_chain": lambda tx: of.named_chain(("a", of.clip(1.0)), ("b", tx)),
    "masked": lambda tx: of.masked(tx, True),
    "partition": lambda tx: of.partition({"own": tx, "none": of.sgd(0.1)}, "own"),
    "per_leaf": of.per_leaf,
    "multi_steps": lambda tx: of.multi_steps(tx, 1),
    "apply_if_finite": lambda tx: of.apply_if_finite(tx, 3),
    "conditionally_transform": lambda tx: of.conditionally_transform(tx, lambda step: step >= 0),
    "conditionally_mask": lambda tx: of.conditionally_mask(tx, lambda step: step >= 0),
    "inject_hyperparams": lambda tx: of.inject_hyperparams(clipped)(1.0, tx),
    "split_real_and_imaginary": of.split_real_and_imaginary,
    "flatten": of.flatten,
}


@of.factory
def clipped(size: float, inner: of.GradientTransformation) -> of.GradientTransformation:
    return of.chain(of.clip(size), inner)


def kept(state, name):
    """What a state holds, found by its name."""
    return of.tree.get(state, {"ema": "ema", "swa": "average", "lookahead": "slow"}[name])


def after(tx, params, steps=4):
    state = tx.init(params)
    step = of.make_step(tx)
    for _ in range(steps):
        params, state = step(params, state, like(params))
    return params, state


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", MEANS)
def test_what_is_kept_beside_the_parameters_is_found(name, dtype):
    tx = MEANS[name]()
    params, state = after(tx, plain_params(dtype))
    found = of.eval_params(tx, state, params)
    assert_trees_equal(found, of.tree.cast(kept(state, name), dtype))
    held = {x.data_ptr() for x in of.tree.leaves(state)}
    assert not held & {x.data_ptr() for x in of.tree.leaves(found)}


def test_schedule_free_says_the_mean_of_its_iterates():
    tx, params, seen = of.chain(of.scale(2.0), of.schedule_free_sgd(0.1)), plain_params(), []
    state, iterate = tx.init(params), params
    for _ in range(4):
        grads = like(params)
        updates, state = tx.update(grads, state, params)
        params, iterate = of.apply_updates(params, updates), of.tree.add_scale(iterate, -0.2, grads)
        seen.append(iterate)
    assert_trees_equal(
        of.eval_params(tx, state, params), of.tree.scale(1 / 4, of.tree.add(*seen)), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_find_it_too(wrapper, name):
    alone, wrapped = of.chain(of.clip(1.0), SAID[name]()), WRAPPED[wrapper](of.chain(of.clip(1.0), SAID[name]()))
    params = plain_params()
    torch.manual_seed(1)
    own, state = after(alone, params)
    torch.manual_seed(1)
    others, wrapped_state = after(wrapped, params)
    want = of.eval_params(alone, state, own)
    assert_trees_equal(of.eval_params(wrapped, wrapped_state, others), want, rtol=1e-12)


def test_complex_parameters_have_theirs():
    tx = of.split_real_and_imaginary(of.chain(of.sgd(0.1), of.params_swa()))
    params = plain_params(torch.complex128)
    step, state, seen = of.make_step(tx), tx.init(params), []
    for _ in range(3):
        params, state = step(params, state, like(params))
        seen.append(params)
    mean = of.tree.scale(1 / 3, of.tree.add(*seen))
    assert_trees_equal(of.eval_params(tx, state, params), mean, rtol=1e-12, atol=1e-12)


def test_stacks_find_it_of_every_member():
    tx = of.stacked(MEANS["ema"]())
    params, state = after(tx, of.tree.batch_shape(plain_params(), (3,)))
    assert_trees_equal(of.eval_params(tx, state, params), kept(state, "ema"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whatever_keeps_nothing_says_the_parameters_themselves(case):
    tx, params = case.tx(), plain_params()
    state = tx.init(params)
    found = of.eval_params(tx, state, params)
    assert of.tree.structure(found) == of.tree.structure(params)
    if tx.eval_params is None:
        assert found is params
    else:
        assert_trees_equal(found, params)  # before the first step all are alike


def test_parts_of_a_model_and_the_last_of_several():
    params = plain_params()
    labels = {"a": "mean", "b": "plain", "c": "plain"}
    tx = of.partition({"mean": MEANS["ema"](), "plain": of.sgd(0.1)}, labels)
    params, state = after(tx, params)
    found = of.eval_params(tx, state, params)
    assert torch.equal(found["a"], kept(state, "ema")["a"])
    assert found["b"] is params["b"]
    tx = of.chain(MEANS["lookahead"](), of.params_ema(0.5))
    params, state = after(tx, params)
    assert_trees_equal(of.eval_params(tx, state, params), kept(state, "ema"))


def test_a_mean_that_has_not_begun_is_not_evaluated():
    tx = of.chain(of.sgd(0.1), of.params_swa(start=10))
    params, state = after(tx, plain_params())
    assert_trees_equal(of.eval_params(tx, state, params), params)


def test_the_slow_ones_of_a_pair():
    pair = of.LookaheadParams(plain_params(), plain_params())
    tx = of.lookahead(of.sgd(0.1), 2, 0.5)
    assert_trees_equal(of.eval_params(tx, tx.init(pair), pair), pair.slow)


# Behind an optimizer


def trained(name, steps=4, dtype=torch.float32, fused=None):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).to(dtype)
    opt = of.Optimizer(net, MEANS[name](), fused=fused)
    go_on(net, opt, 0, steps)
    return net, opt


def go_on(net, opt, first, last):
    for step in range(first, last):
        opt.zero_grad()
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step)).to(net[0].weight)
        (net(x) ** 2).mean().backward()
        opt.step()


def values(net):
    return [p.detach().clone() for p in net.parameters()]


def same(a, b):
    return all(map(torch.equal, a, b))


def mean_of(net, opt, name):
    end = {"ema": "ema", "swa": "average", "lookahead": "slow"}[name]
    found = [next(x for key, x in opt.state[p].items() if key.endswith("." + end)) for p in net.parameters()]
    return [x.to(p.dtype) for x, p in zip(found, net.parameters(), strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("name", MEANS)
def test_they_are_swapped_in_and_back_exactly(name, fused, dtype):
    net, opt = trained(name, dtype=dtype, fused=fused)
    before, pointers = values(net), [p.data_ptr() for p in net.parameters()]
    with opt.evaluation():
        assert opt.is_evaluating
        assert same(values(net), mean_of(net, opt, name))
    assert same(values(net), before)
    assert [p.data_ptr() for p in net.parameters()] == pointers
    twin, other = trained(name, dtype=dtype, fused=fused)
    go_on(net, opt, 4, 7)
    go_on(twin, other, 4, 7)
    assert same(values(net), values(twin))


def test_blocks_nest_and_exceptions_lose_nothing():
    net, opt = trained("ema")
    before = values(net)

    def fail():
        with opt.evaluation():
            with opt.evaluation():
                pass
            assert opt.is_evaluating
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not opt.is_evaluating
    assert same(values(net), before)
    opt.eval()
    opt.eval()
    with opt.evaluation():
        pass
    assert opt.is_evaluating
    opt.train()
    opt.train()
    assert same(values(net), before)


def test_a_step_in_between_is_refused():
    net, opt = trained("swa")
    opt.eval()
    now, count = values(net), opt.state[net[0].weight]["params_swa.count"].clone()
    with pytest.raises(RuntimeError, match=r"those to evaluate, and a step needs the trained ones: call train\(\)"):
        go_on(net, opt, 4, 5)
    assert same(values(net), now)
    assert torch.equal(opt.state[net[0].weight]["params_swa.count"], count)
    with pytest.raises(RuntimeError, match="load_state_dict needs the trained ones"):
        opt.load_state_dict(opt.state_dict())
    opt.train()
    go_on(net, opt, 4, 5)


@pytest.mark.parametrize("how", ["file", "pickle", "copy"])
@pytest.mark.parametrize("name", MEANS)
def test_a_checkpoint_in_between_holds_both(name, how):
    net, opt = trained(name)
    before = values(net)
    opt.eval()
    if how == "file":
        file = io.BytesIO()
        torch.save({"net": net.state_dict(), "opt": opt.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        twin, other = trained(name, 1)
        twin.load_state_dict(saved["net"])
        other.load_state_dict(saved["opt"])
    elif how == "copy":
        twin, other = copy.deepcopy((net, opt))
    else:
        file = io.BytesIO()
        torch.save((net, opt), file)
        file.seek(0)
        twin, other = torch.load(file, weights_only=False)
    assert other.is_evaluating
    assert same(values(twin), values(net))
    other.train()
    assert same(values(twin), before)
    opt.train()
    go_on(net, opt, 4, 6)
    go_on(twin, other, 4, 6)
    assert same(values(twin), values(net))


def test_before_the_first_step_and_where_nothing_is_kept_it_does_nothing():
    net = torch.nn.Linear(2, 2)
    for tx in (MEANS["ema"](), of.adam(0.1)):
        opt = of.Optimizer(net, tx)
        before = values(net)
        with opt.evaluation():
            assert same(values(net), before)
        net(torch.ones(1, 2)).sum().backward()
        opt.step()


def test_groups_of_a_partition_evaluate_their_own():
    net = torch.nn.Linear(3, 2)
    labels = of.tree.label_by_path({"bias": "plain"}, default="mean")
    opt = of.Optimizer(net, of.partition({"mean": MEANS["ema"](), "plain": of.sgd(0.1)}, labels))
    for _ in range(3):
        net(torch.randn(4, 3)).square().mean().backward()
        opt.step()
    before = values(net)
    with opt.evaluation():
        ema = next(x for key, x in opt.state[net.weight].items() if key.endswith("ema"))
        assert torch.equal(net.weight, ema)
        assert torch.equal(net.bias, before[1])
    assert same(values(net), before)
