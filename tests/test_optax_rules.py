"""What is special to single rules of optax's core, beyond the laws."""

import math

import pytest
import torch
from helpers import assert_trees_equal, follow, like, params_tree, plain_params

import optimfn as of


def test_zero_nans_says_where_they_were_and_passes_infinities():
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    tx = of.zero_nans()
    grads = {"a": torch.tensor([math.nan, math.inf]), "b": torch.ones(2)}
    updates, state = tx.update(grads, tx.init(params))
    assert updates["a"].tolist() == [0.0, math.inf]
    assert of.tree.map(bool, state.found_nan) == {"a": True, "b": False}
    assert of.tree.map(bool, tx.update(params, state)[1].found_nan) == {"a": False, "b": False}


@pytest.mark.parametrize(
    "tx",
    [of.sign_sgd(1.0), of.signum(1.0), of.lion(1.0), of.adagrad(1.0), of.adagrad(1.0, 0.0, 1e-10, eps_in_sqrt=False)],
    ids=lambda tx: tx.recipe.factory.__name__,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_a_nan_in_a_gradient_shows_in_the_update(tx, dtype):
    params, bad = torch.ones(2, dtype=dtype), torch.tensor([math.nan, 1.0], dtype=dtype)
    updates, _ = tx.update(bad, tx.init(params), params)
    assert updates.isnan().tolist() == [True, False]


def test_a_nan_in_the_sum_of_squares_makes_no_step_of_a_billion():
    tx = of.adagrad(0.1, 0.0, 1e-10, eps_in_sqrt=False)
    _, state = tx.update(torch.tensor([math.nan, 1.0]), tx.init(torch.ones(2)))
    updates, _ = tx.update(torch.ones(2), state)
    assert updates.isnan().tolist() == [True, False]


def test_zero_nans_has_clean_gradients_where_it_replaced():
    def loss(u):
        return of.zero_nans().update(u, of.zero_nans().init(u))[0].sum()

    assert torch.func.grad(loss)(torch.tensor([math.nan, 2.0])).tolist() == [0.0, 1.0]


def test_parameters_stay_nonnegative():
    tx = of.chain(of.sgd(1.0), of.keep_params_nonnegative())
    params = of.tree.map(torch.abs, plain_params())
    for moved in follow(tx, params, [like(params) for _ in range(10)]):
        assert of.tree.min(moved) >= 0


def test_noise_depends_on_seed_step_path_and_shape_only():
    params = {"a": torch.zeros(3, 2), "b": torch.zeros(5)}
    tx = of.add_noise(1.0, 0.5, seed=7)
    updates, state = tx.update(params, tx.init(params))
    more = {**params, "aa": torch.zeros(9)}
    assert_trees_equal({n: u for n, u in tx.update(more, tx.init(more))[0].items() if n != "aa"}, updates)
    some = {"a": None, "b": params["b"]}
    assert torch.equal(tx.update(some, tx.init(params))[0]["b"], updates["b"])
    assert not torch.equal(tx.update(params, state)[0]["b"], updates["b"])
    other = of.add_noise(1.0, 0.5, seed=8)
    assert not torch.equal(other.update(params, other.init(params))[0]["b"], updates["b"])
    assert not torch.equal(updates["a"].flatten()[:5], updates["b"])


def test_a_batched_seed_gives_every_member_its_own_noise():
    params = torch.zeros(2, 4, dtype=torch.float64)

    def run(p, seed):
        tx = of.add_noise(1.0, 0.5, seed=seed)
        return tx.update(p, tx.init(p))[0]

    together = torch.func.vmap(run)(params, torch.tensor([3, 4]))
    for member, seed in zip(together, (3, 4), strict=True):
        assert_trees_equal(member, run(params[0], seed))


def test_noise_is_normal():
    draws = of.tree.random_like(0, torch.zeros(200_000, dtype=torch.float64))
    sample = draws.sort().values
    cdf = torch.special.ndtr(sample)
    steps = torch.arange(1, len(sample) + 1) / len(sample)
    assert (cdf - steps).abs().max() < 1.63 / math.sqrt(len(sample))  # Kolmogorov and Smirnov at 1 %
    assert abs(torch.corrcoef(torch.stack([draws[1:], draws[:-1]]))[0, 1]) < 0.01


def test_complex_noise_has_the_variance_of_real_noise():
    draws = of.tree.random_like(0, torch.zeros(100_000, dtype=torch.complex128))
    assert draws.abs().square().mean() == pytest.approx(1.0, abs=0.02)
    assert draws.real.var() == pytest.approx(0.5, abs=0.01)
    assert abs((draws.real * draws.imag).mean()) < 0.01


def test_uniform_numbers_are_inside_the_open_interval():
    draws = of.tree.random_like(1, torch.zeros(100_000), of.tree.uniform)
    assert draws.dtype == torch.float32
    assert 0 < draws.min() < 1e-4
    assert 1 - 1e-4 < draws.max() <= 1
    assert draws.double().mean() == pytest.approx(0.5, abs=0.005)


def test_keys_differ_from_leaf_to_leaf():
    keys = of.tree.split_key_like(0, params_tree())
    found = [int(key) for key in of.tree.leaves(keys)]
    assert len(set(found)) == len(found)


def test_sm3_takes_a_0_dim_leaf_for_a_vector_of_one():
    tx = of.sm3(0.1)
    gradients = torch.randn(5, 1)
    vector = follow(tx, torch.ones(1), list(gradients))
    scalar = follow(tx, torch.ones(()), [g[0] for g in gradients])
    assert [v.item() for v in vector] == [s.item() for s in scalar]


def test_units_of_a_weight_are_its_rows():
    for shape in ((4, 3), (4, 3, 5), (4, 3, 2, 2), (4, 3, 2, 2, 2)):
        x = torch.randn(shape)
        want = x.flatten(1).norm(dim=1)
        assert_trees_equal(of.unitwise_norm(x).flatten(1)[:, 0], want, rtol=1e-6)
    assert of.unitwise_norm(torch.tensor([3.0, 4.0])).tolist() == [5.0, 5.0]
    assert of.unitwise_norm(torch.tensor([[3.0], [4.0]])).tolist() == [[5.0], [5.0]]
    assert of.unitwise_norm(torch.tensor(-3.0)).item() == 3.0
    assert of.unitwise_norm(torch.tensor([[3.0, 1.0], [4.0, 0.0]]), axis=0).tolist() == [[5.0, 1.0], [5.0, 1.0]]


@pytest.mark.parametrize("bound", [0.0, 1.5, math.inf, torch.tensor(1.5)])
def test_gradients_are_clipped_example_by_example(bound):
    grads = {"w": torch.randn(6, 2, 3), "b": torch.randn(6)}
    grads["w"][0], grads["b"][0] = 0.0, 0.0
    summed, clipped = of.per_example_global_norm_clip(grads, bound)
    want = {"w": torch.zeros(2, 3), "b": torch.zeros(())}
    count = 0
    for i in range(6):
        norm = math.sqrt(sum((g[i] ** 2).sum().item() for g in grads.values()))
        factor = min(1.0, float(bound) / norm) if norm else 1.0
        count += factor < 1
        want = {name: want[name] + factor * g[i] for name, g in grads.items()}
    assert_trees_equal(summed, want, rtol=1e-5, atol=1e-6)
    assert clipped.item() == count


@pytest.mark.parametrize("uniform", [True, False])
def test_gradients_are_clipped_leaf_by_leaf(uniform):
    grads = {"w": torch.randn(6, 2, 3), "b": torch.randn(6)}
    shares = {"w": 1 / 2, "b": 1 / 2} if uniform else {"w": 6 / 7, "b": 1 / 7}
    summed, clipped = of.per_example_layer_norm_clip(grads, 1.0, uniform)
    for name, g in grads.items():
        want, count = of.per_example_global_norm_clip(g, math.sqrt(shares[name]))
        assert_trees_equal((summed[name], clipped[name]), (want, count), rtol=1e-6)


@pytest.mark.parametrize("clip", [of.per_example_global_norm_clip, of.per_example_layer_norm_clip])
def test_a_batch_without_examples_or_elements_sums_to_zero(clip):
    grads = {"w": torch.ones(0, 2, 3), "b": torch.ones(0)}
    summed, clipped = clip(grads, 1.0)
    assert_trees_equal(summed, {"w": torch.zeros(2, 3), "b": torch.zeros(())})
    assert all(count.item() == 0 for count in of.tree.leaves(clipped))
    assert clip(torch.ones(2, 0), 1.0)[0].shape == (0,)
    with pytest.raises(ValueError, match="norm_clip must be a number >= 0, got -1"):
        clip(torch.ones(2, 3), -1.0)


def test_examples_must_be_along_the_first_axis():
    with pytest.raises(ValueError, match="grads must have the examples along the first axis"):
        of.per_example_global_norm_clip({"w": torch.ones(3, 2), "b": torch.ones(2)}, 1.0)


def test_a_negative_offset_begins_as_if_so_many_steps_had_been_taken():
    params = plain_params()
    later, begun = of.scale_by_factored_rms(), of.scale_by_factored_rms(step_offset=-3)
    restored = of.tree.set(later.init(params), count=torch.tensor(3))
    assert_trees_equal(begun.update(params, begun.init(params), params)[0], later.update(params, restored, params)[0])


@pytest.mark.parametrize("make", [of.scale_by_polyak, of.polyak_sgd])
def test_polyak_says_that_it_needs_the_loss(make):
    with pytest.raises(ValueError, match=r"needs the loss: call tx\.update"):
        make().update(torch.ones(1), make().init(torch.ones(1)))


def test_polyak_reaches_the_minimum_of_a_cone():
    w = torch.tensor([3.0, 4.0], dtype=torch.float64)
    tx = of.polyak_sgd(max_learning_rate=10.0)
    updates, _ = tx.update(w / w.norm(), tx.init(w), value=w.norm())
    assert (w + updates).abs().max() < 1e-12


def test_factored_moments_are_small():
    params = {"w": torch.zeros(128, 256), "b": torch.zeros(256)}
    state = of.scale_by_factored_rms().init(params)
    assert state.v_row["w"].shape == (128,)
    assert state.v_col["w"].shape == (256,)
    assert state.v["b"].shape == (256,)
    assert of.tree.size((state.v["w"], state.v_row["b"], state.v_col["b"])) == 0
