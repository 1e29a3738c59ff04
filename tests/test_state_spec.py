"""What leaves of a state are, and the checkpoints of one process."""

from typing import Annotated, Any, NamedTuple

import pytest
import torch
import torch.distributed.checkpoint as dcp
from cases import CASES
from helpers import assert_trees_equal, follow, like, params_tree, plain_params

import optimfn as of


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_leaf_of_a_state_is_known(case):
    tx, params = case.tx(), plain_params()
    state, spec = tx.init(params), of.state_spec(tx, params)
    elsewhere = tx.init(of.tree.map(lambda p: p.to("meta"), params))
    on_host = {path for path, leaf in of.tree.leaves_with_path(elsewhere) if leaf.is_cpu}  # wherever parameters are
    found = dict(of.tree.leaves_with_path(spec))
    for path, leaf in of.tree.leaves_with_path(state):
        name = next((name for name in reversed(path) if name in params), None)
        mirrors = name is not None and leaf.shape == params[name].shape and "factors" not in path  # which say so
        want = "param" if mirrors else "factor"
        if name is None:
            want = "host" if path in on_host else "replicated"
        assert found.pop(path) == of.LeafSpec(want, name)
    assert not found


class Errors(NamedTuple):
    """A state of which a part is each replica's own."""

    count: Annotated[Any, of.LeafSpec("host")]
    error: Annotated[Any, of.LeafSpec("per_replica", elastic="reset")]


@of.factory
def compress():
    def init(params):
        return Errors(of.tree.count(params), of.tree.zeros_like(params))

    def update(updates, state, params=None, **extra):
        return updates, Errors(state.count + 1, of.tree.add(state.error, updates))

    return of.GradientTransformation(init, update)


@pytest.mark.parametrize("wrap", [lambda tx: tx, of.per_leaf, lambda tx: of.chain(of.adam(0.1), of.masked(tx, True))])
def test_a_state_says_what_its_fields_are(wrap):
    params = {"a": torch.ones(2), "b": {"c": torch.ones(3)}}
    spec = of.state_spec(wrap(compress()), params)
    by_path = {of.tree.join_path(path): leaf for path, leaf in of.tree.leaves_with_path(spec)}
    for path, leaf in by_path.items():
        if "error" in path:
            owner = next(name for name in ("b.c", "a") if name in path)
            assert leaf == of.LeafSpec("per_replica", owner, "reset")
        if path.endswith("count") and "0.0" not in path:
            assert leaf.kind == "host"


def test_kinds_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match=r"kind must be one of 'param', .*, got 'own'"):
        of.LeafSpec("own")
    with pytest.raises(ValueError, match="elastic must be one of 'mean', 'reset', 'error', got 'sum'"):
        of.LeafSpec("per_replica", elastic="sum")


# Checkpoints


def after_steps(tx, params, steps=3):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(like(params), state, params)
        params = of.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_saved_comes_back_in_all_bits(case, tmp_path):
    if "checkpoint" in case.skips:
        pytest.skip(case.skips["checkpoint"])
    tx, params = case.tx(), params_tree(torch.bfloat16)
    params, state = after_steps(tx, params, 1)
    of.distributed.save(tmp_path, params, state, tx)
    fresh = of.tree.zeros_like(params)
    got, loaded = of.distributed.load(tmp_path, fresh, tx.init(fresh), tx)
    assert_trees_equal((got, loaded), (params, state))
    assert all(not x.any() for x in of.tree.leaves(fresh))


def test_a_run_goes_on_as_if_nothing_had_been(tmp_path):
    tx, params = of.chain(of.clip_by_global_norm(1.0), of.adamw(0.1), of.params_ema(0.9)), plain_params()
    gradients = [like(params) for _ in range(6)]
    want = follow(tx, params, gradients)[-1]
    step = of.make_step(tx)
    own, state = params, tx.init(params)
    for grads in gradients[:3]:
        own, state = step(own, state, grads)
    of.distributed.save(tmp_path, own, state, tx)
    own, state = of.distributed.load(tmp_path, params, tx.init(params), tx)
    for grads in gradients[3:]:
        own, state = step(own, state, grads)
    assert_trees_equal(own, want, rtol=1e-12)


def test_a_donated_tree_is_written_to(tmp_path):
    tx, model = of.adam(0.1), torch.nn.Linear(3, 2)
    params = dict(model.named_parameters())
    state = tx.init(params)
    of.distributed.save(tmp_path, params, state, tx)
    saved = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    got, loaded = of.distributed.load(tmp_path, params, state, tx, donate=True)
    assert all(map(torch.equal, model.parameters(), saved))
    assert got["weight"] is model.weight
    assert loaded[0].count is state[0].count
    got, _ = of.distributed.load(tmp_path, params, state, tx)
    assert got["weight"] is not model.weight
    assert got["weight"].requires_grad


def test_what_does_not_fit_is_listed_and_nothing_is_read(tmp_path):
    params = {"a": torch.ones(2), "b": torch.ones(3)}
    tx = of.adam(0.1)
    of.distributed.save(tmp_path, params, tx.init(params), tx)
    other = {"a": torch.zeros(2), "c": torch.zeros(3)}
    with pytest.raises(KeyError, match=r"missing \['params.c', .*left over \['params.b'"):
        of.distributed.load(tmp_path, other, tx.init(other), tx, donate=True)
    assert not other["a"].any()
    some, _ = of.distributed.load(tmp_path, other, tx.init(other), tx, strict=False)
    assert_trees_equal(some, {"a": torch.ones(2), "c": torch.zeros(3)})
    assert some["c"].data_ptr() != other["c"].data_ptr()
    wide = {"a": torch.zeros(2), "b": torch.zeros(4)}
    with pytest.raises(ValueError, match=r"params.b has shape \(3,\) in the checkpoint, \(4,\) is wanted"):
        of.distributed.load(tmp_path, wide, tx.init(wide), tx, donate=True)
    assert not wide["a"].any()


def test_what_is_no_tensor_is_named(tmp_path):
    params = {"a": torch.ones(2)}
    with pytest.raises(TypeError, match=r"state.0 must be a tensor, got str"):
        of.distributed.save(tmp_path, params, ("adam",), of.GradientTransformation(lambda p: ("adam",), lambda u, s: u))
    with pytest.raises(ValueError, match=r"two leaves are called params.a.b"):
        of.distributed.save(tmp_path, {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, (), of.identity())


def test_numbers_that_someone_has_put_into_a_state_are_saved_as_tensors(tmp_path):
    tx, params = of.inject_hyperparams(of.sgd)(0.1), {"a": torch.ones(2)}
    state = tx.init(params)
    state.hyperparams["learning_rate"] = 0.25
    of.distributed.save(tmp_path, params, state, tx)
    _, loaded = of.distributed.load(tmp_path, params, tx.init(params), tx)
    assert loaded.hyperparams["learning_rate"].item() == 0.25


def test_what_is_each_replicas_own_gets_an_axis_of_the_replicas(tmp_path):
    params = {"a": torch.ones(2)}
    state = compress().init(params)
    own = of.tree.map(lambda x: x + 3.0, state)
    of.distributed.save(tmp_path, params, own, compress())
    entries = dcp.FileSystemReader(tmp_path).read_metadata().state_dict_metadata
    assert entries["state.error.a"].size == (1, 2)
    assert entries["params.a"].size == (2,)
    _, loaded = of.distributed.load(tmp_path, params, state, compress())
    assert torch.equal(loaded.error["a"], own.error["a"])


def test_nothing_is_pickled(tmp_path):
    params = plain_params()
    tx = of.chain(of.named_chain(("own", of.adam(0.1))), of.params_ema(0.9))
    of.distributed.save(tmp_path, params, tx.init(params), tx)
    entries = dcp.FileSystemReader(tmp_path).read_metadata().state_dict_metadata
    assert {type(entry).__name__ for entry in entries.values()} == {"TensorStorageMetadata"}
    assert {"params.a", "state.0.own.0.mu.a", "state.1.ema.b", "state.1.count"} <= entries.keys()


@pytest.mark.filterwarnings("ignore")  # torch's own words about a single process
def test_a_train_state_is_saved_while_training_goes_on(tmp_path):
    tx = of.adamw(0.1)
    params, state = after_steps(tx, plain_params())
    before = of.tree.map(torch.clone, (params, state))
    train = of.distributed.TrainState(params, state)
    dcp.save({"train": train}, checkpoint_id=tmp_path, no_dist=True)
    of.make_step(tx, donate=True)(params, state, like(params))
    dcp.load({"train": train}, checkpoint_id=tmp_path, no_dist=True)
    assert train.params is params
    assert_trees_equal((params, state), before)
    with pytest.raises(KeyError, match=r"missing \['params.a'"):
        train.load_state_dict({name: x for name, x in train.state_dict().items() if name != "params.a"})
