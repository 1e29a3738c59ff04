"""Chains and wrappers that are refused when they are made, since a part could not do there what it is for."""

import pytest
import torch
from helpers import assert_trees_equal, rough_gradients

import optimfn as of

RULE, DECAY = of.scale_by_adam(), of.add_decayed_weights(0.1)
BY_MASK = {"w": True, "b": False}


def behind(first, *parts):
    """A chain that is to be refused."""
    return lambda: of.chain(first(), *(part() for part in parts))


def sgd():
    """A step."""
    return of.sgd(0.1)


FRONTS = {"mars": of.mars, "grokfast": of.grokfast, "zclip": of.zclip, "autoclip": of.autoclip}
STEPS = {
    "sgd": sgd,
    "chain": lambda: of.chain(of.clip(1.0), of.adamw(0.1)),
    "apply_if_finite": lambda: of.apply_if_finite(of.adam(0.1), 3),
    "inject_hyperparams": lambda: of.inject_hyperparams(of.adam)(learning_rate=0.1),
    "schedule_free": of.schedule_free_sgd,
    "cautious": lambda: of.cautious(of.lion(0.1)),
}
WHOLE = {
    "schedule_free": lambda: of.schedule_free(of.sgd(0.1), 0.1),
    "gpa": lambda: of.gpa(of.adam(0.1)),
    "mechanize": lambda: of.mechanize(of.lion(1.0)),
    "hyperball": lambda: of.hyperball(RULE, 0.1),
    "sam": lambda: of.sam(of.sgd(0.1), of.chain(of.normalize(), of.sgd(0.05))),
    "msam": lambda: of.msam(of.sgd(0.1)),
    "lookahead": lambda: of.lookahead(of.sgd(0.1), 2, 0.5, slow_in_state=True),
}
CHANGES = {
    "rate": lambda: of.scale_by_learning_rate(0.1),
    "scale": lambda: of.scale(0.5),
    "schedule": lambda: of.scale_by_schedule(lambda count: 0.5),
    "clip": lambda: of.clip_by_global_norm(1.0),
    "decay": lambda: DECAY,
    "rule": lambda: RULE,
}


@pytest.mark.parametrize("front", FRONTS.values(), ids=FRONTS)
def test_fronts_see_gradients(front):
    for step in STEPS.values():
        with pytest.raises(ValueError, match=r"must see gradients, before any rule, .* made a step of them: put it in"):
            of.chain(step(), front())
        with pytest.raises(ValueError, match="must see gradients"):
            of.named_chain(("step", step()), ("front", of.masked(front(), BY_MASK)))
    with pytest.raises(ValueError, match=r"must see gradients, before any rule, and stands behind scale_by_adam: put"):
        of.chain(RULE, front())
    of.chain(of.clip(1.0), front(), of.grokfast(), of.adamw(0.1))
    of.chain(of.masked(of.adam(0.1), BY_MASK), of.masked(front(), {"w": False, "b": True}))  # leaves of its own


@pytest.mark.parametrize("whole", WHOLE.values(), ids=WHOLE)
def test_whole_steps_reach_the_parameters_as_they_are(whole):
    for change in CHANGES.values():
        with pytest.raises(ValueError, match=r"must reach the parameters as it is|has made a step of them"):
            of.chain(whole(), change())
    with pytest.raises(ValueError, match="has made a step of them: put it in front"):
        of.chain(of.sgd(0.1), whole())
    of.chain(of.mars(), of.clip(1.0), whole(), of.params_ema(0.9), of.identity())


POSTS = {
    "cautious": lambda: of.cautious(RULE),
    "graft": lambda: of.graft(RULE, of.scale_by_lion()),
    "tangential": lambda: of.tangential(RULE),
    "decay": lambda: DECAY,
    "cautious decay": lambda: of.add_cautious_decayed_weights(0.1),
    "corrected decay": lambda: of.add_corrected_decayed_weights(0.1, 0.1, 0.1),
    "corrected decay on a schedule": lambda: of.add_corrected_decayed_weights(0.1, lambda count: 0.1, 0.1),
    "independent decay": lambda: of.add_independent_decayed_weights(0.1, 0.1),
}


@pytest.mark.parametrize("post", POSTS.values(), ids=POSTS)
def test_posts_stand_before_the_rate(post):
    for step in STEPS.values():
        with pytest.raises(ValueError, match="has made a step of them: put it in front"):
            of.chain(step(), post())
    of.chain(of.mars(), post(), of.scale_by_learning_rate(0.1))
    of.chain(of.scale_by_learning_rate(0.1, flip_sign=False), post(), of.scale(-1.0))


LAST = {
    "params_ema": lambda: of.params_ema(0.9),
    "params_swa": of.params_swa,
    "decay_after_step": lambda: of.decay_after_step(0.1, 0.1),
    "decay_proximally": lambda: of.decay_proximally(0.1, lambda count: 0.1),
    "power_ema": of.power_ema,
    "keep_params_in": lambda: of.keep_params_in(of.projection_non_negative),
    "keep_params_nonnegative": of.keep_params_nonnegative,
}


@pytest.mark.parametrize("last", LAST.values(), ids=LAST)
def test_what_sees_the_finished_step_stands_last(last):
    for change in (sgd, lambda: DECAY, lambda: of.cautious(RULE), of.schedule_free_sgd):
        with pytest.raises(ValueError, match=r"must see the finished step, and .* behind it would change it: put it"):
            of.chain(last(), change())
    of.chain(of.sgd(0.1), last(), of.params_ema(0.9))


def inside(name):
    """A wrapper that moves the parameters by the updates of an optimizer."""
    return {
        "schedule_free": lambda tx: of.schedule_free(tx, 0.1),
        "gpa": of.gpa,
        "mechanize": of.mechanize,
        "sam": lambda tx: of.sam(tx, of.sgd(0.1)),
        "msam": of.msam,
        "looksam": of.looksam,
        "sam's climb": lambda tx: of.sam(of.sgd(0.1), tx),
    }[name]


@pytest.mark.parametrize("name", ["schedule_free", "gpa", "mechanize", "sam", "sam's climb", "msam", "looksam"])
def test_what_steps_goes_downhill(name):
    wrap = inside(name)
    for rule in (RULE, of.chain(of.mars(), of.scale_by_lion(), DECAY), of.cautious(RULE), of.graft(RULE, RULE)):
        with pytest.raises(ValueError, match=r"must be a whole optimizer, whose updates go downhill, got the rule"):
            wrap(rule)
    wrap(of.chain(RULE, of.scale(-0.1)))
    wrap(of.stateless(lambda updates, params: updates))  # which nobody knows


@pytest.mark.parametrize("name", ["schedule_free", "gpa", "mechanize", "msam"])
def test_one_average_owns_the_iterates(name):
    for tx in (of.schedule_free_sgd(0.1), of.chain(of.sgd(0.1), of.params_ema(0.9)), of.gpa(of.sgd(0.1))):
        with pytest.raises(ValueError, match="must not keep parameters to evaluate of its own, got"):
            inside(name)(tx)


def test_grafted_rules_are_of_one_kind():
    with pytest.raises(
        ValueError, match="direction_of has a learning rate and norm_of has none, so that they point op"
    ):
        of.graft(RULE, of.lion(0.1))
    with pytest.raises(ValueError, match="norm_of has a learning rate and direction_of has none"):
        of.graft(of.sgd(0.1), of.scale_by_lion())
    for tx in (of.chain(RULE, DECAY), of.chain(RULE, of.add_cautious_decayed_weights(0.1))):
        with pytest.raises(ValueError, match=r"(?s)direction_of must not decay, got add_.*put it behind"):
            of.graft(RULE, tx)
    of.graft(of.chain(DECAY, RULE), RULE)  # decay in the gradient
    of.graft(of.sgd(0.1), of.adam(0.1))


DECAYS = {
    "cautious": lambda: of.add_cautious_decayed_weights(0.5),
    "corrected": lambda: of.add_corrected_decayed_weights(0.5, 0.1, 0.1),
    "independent": lambda: of.add_independent_decayed_weights(0.5, 0.1),
    "toward the start": lambda: of.add_decay_toward_start(0.5),
    "masked": lambda: of.masked(of.add_decayed_weights(0.5), BY_MASK),
}
AROUND = {"cautious": of.cautious, "project": lambda tx: of.project(tx, rank=2)}


@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS)
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_decay_stays_outside(around, decay):
    whole = around(of.chain(of.scale_by_lion(), decay(), of.scale_by_learning_rate(0.1), of.params_ema(0.9)))
    apart = of.chain(around(of.scale_by_lion()), decay(), of.scale_by_learning_rate(0.1), of.params_ema(0.9))
    params = {"w": torch.randn(4, 3), "b": torch.randn(3)}
    state, other = whole.init(params), apart.init(params)
    for grads in rough_gradients(params, 3):
        updates, state = whole.update(grads, state, params)
        expected, other = apart.update(grads, other, params)
        assert_trees_equal(updates, expected)
        params = of.apply_updates(params, updates)
    assert_trees_equal(of.eval_params(whole, state, params), of.eval_params(apart, other, params))


def test_projected_rules_see_no_parameters():
    with pytest.raises(ValueError, match=r"(?s)project shows a rule no parameters, and schedule_free_sgd.* needs them"):
        of.project(of.schedule_free_sgd())
    params = torch.randn(4, 3)
    updates, _ = (tx := of.project(of.adamw(1e-3), rank=2)).update(params, tx.init(params), params)
    assert updates.shape == params.shape


def test_what_a_climb_evaluates_is_its_foot():
    inner = of.chain(of.sgd(0.1), of.params_ema(0.5))
    climb = of.chain(of.normalize(), of.sgd(0.05))
    tx, opaque = of.sam(inner, climb), of.sam(inner, climb, opaque_mode=True)
    params = other = torch.tensor([1.0, 2.0])
    state, kept = tx.init(params), opaque.init(params)
    assert of.sam(of.sgd(0.1), climb, opaque_mode=True).eval_params is None
    for _ in range(3):
        up, state = tx.update(2 * params, state, params)
        params = of.apply_updates(params, up)
        assert_trees_equal(of.eval_params(tx, state, params), of.eval_params(opaque, kept, other))
        down, state = tx.update(2 * params, state, params)
        params = of.apply_updates(params, down)
        step, kept = opaque.update(2 * other, kept, other, grad_fn=lambda p, i: 2 * p)
        other = of.apply_updates(other, step)
        assert_trees_equal(of.eval_params(tx, state, params), of.eval_params(opaque, kept, other), rtol=1e-6)
