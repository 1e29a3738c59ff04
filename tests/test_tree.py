"""The tree verbs, one by one; the properties are drawn by hypothesis."""

import math
from collections import OrderedDict

import pytest
import torch
from helpers import Pair, assert_trees_equal
from hypothesis import given
from hypothesis import strategies as st
from strategies import COMPLEX, FLOATS, fractions, tensors, trees

import optimfn as of
from optimfn import tree


def nested():
    return {"b": torch.tensor([1.0, 2.0]), "a": [torch.tensor(3.0), None, Pair(torch.ones(2, 2), (torch.zeros(0),))]}


@given(trees())
def test_map_with_identity_gives_the_tree_back(t):
    assert_trees_equal(tree.map(lambda x: x, t), t)


@given(trees(FLOATS + COMPLEX))
def test_leaves_paths_and_walk_agree(t):
    pairs = tree.leaves_with_path(t)
    assert [id(leaf) for _, leaf in pairs] == [id(leaf) for leaf in tree.leaves(t)]
    assert tree.leaves(tree.paths(t)) == [tree.join_path(path) for path, _ in pairs]
    assert_trees_equal(tree.unflatten(t, tree.leaves(t)), t)


@given(trees())
def test_map_reaches_every_leaf_as_optree_does(t):
    doubled = tree.map(lambda x: x * 2, t)
    assert tree.structure(doubled) == tree.structure(t)
    assert_trees_equal(tree.leaves(doubled), [x * 2 for x in tree.leaves(t)])


@given(trees(), st.floats(-2, 2))
def test_scaling_keeps_dtypes_for_numbers_and_tensors(t, factor):
    by_number, by_tensor = tree.scale(factor, t), tree.scale(torch.tensor(factor, dtype=torch.float64), t)
    for x, a, b in zip(tree.leaves(t), tree.leaves(by_number), tree.leaves(by_tensor), strict=True):
        assert a.dtype == b.dtype == x.dtype
        torch.testing.assert_close(a, b)


@given(trees((torch.float64,)), fractions)
def test_moments_are_the_formula(t, decay):
    moments = tree.map(torch.randn_like, t)
    for order in (1, 2):
        got = tree.update_moment(t, moments, decay, order)
        want = tree.map(lambda g, m, order=order: (1 - decay) * g**order + decay * m, t, moments)
        assert_trees_equal(got, want, rtol=1e-12, atol=1e-12)
    got = tree.update_moment_per_elem_norm(t, moments, decay, 2)
    assert_trees_equal(got, tree.update_moment(t, moments, decay, 2), rtol=1e-12, atol=1e-12)
    got = tree.update_infinity_moment(t, moments, decay, 1e-8)
    want = tree.map(lambda g, m: torch.maximum(g.abs() + 1e-8, decay * m), t, moments)
    assert_trees_equal(got, want)


@pytest.mark.parametrize("decay", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_means_of_squares_reach_infinity_and_stay_there(dtype, decay):
    g, m = torch.tensor([torch.inf, 1.0, torch.inf, 1.0], dtype=dtype), torch.tensor([0.0, torch.inf, torch.inf, 0.0])
    for one in (decay, torch.tensor(decay), torch.tensor(decay, dtype=torch.float64)):
        got = tree.update_moment_per_elem_norm(g, m, one, 2)
        torch.testing.assert_close(got, torch.tensor([torch.inf] * 3 + [1 - decay], dtype=got.dtype))


@given(tensors((torch.complex128,)), fractions)
def test_moments_of_magnitudes_are_real(g, decay):
    m = torch.rand(g.shape, dtype=torch.float64)
    want = (1 - decay) * g.abs() ** 2 + decay * m
    got = tree.update_moment_per_elem_norm(g, m, decay, 2)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(tree.abs_sq(g), g.abs() ** 2)
    torch.testing.assert_close(tree.update_moment_per_elem_norm(g, m, decay, 3), (1 - decay) * g.abs() ** 3 + decay * m)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_squares_of_low_precision_are_taken_in_float32(dtype):
    g, m = torch.tensor([300.0], dtype=dtype), torch.zeros(1)
    want = g.double() ** 2
    assert tree.abs_sq(g).double() == want
    assert tree.update_moment_per_elem_norm(g, m, torch.tensor(0.5), 2).double() == want / 2
    assert tree.update_moment_per_elem_norm(g, m, 0.5, 2).double() == want / 2


@given(trees((torch.float64,)))
def test_reductions_equal_those_of_the_long_vector(t):
    flat = torch.cat([x.flatten() for x in tree.leaves(t)] or [torch.zeros(0, dtype=torch.float64)])
    assert tree.size(t) == flat.numel()
    assert tree.sum(t).item() == pytest.approx(flat.sum().item(), abs=1e-12)
    assert tree.vdot(t, t).item() == pytest.approx(flat.dot(flat).item(), abs=1e-12)
    assert tree.max(t).item() == (flat.max().item() if flat.numel() else -math.inf)
    assert tree.min(t).item() == (flat.min().item() if flat.numel() else math.inf)
    for order in (None, 1, 2, math.inf):
        want = flat.norm(p=2 if order is None else order).item() if flat.numel() else 0.0
        assert tree.norm(t, order).item() == pytest.approx(want, abs=1e-12)
        assert tree.norm(t, order, squared=True).item() == pytest.approx(want**2, abs=1e-12)


def test_rms():
    assert tree.rms([torch.tensor([3.0, 4.0]), torch.tensor(5.0)]).item() == pytest.approx(math.sqrt(50 / 3))
    assert tree.rms({}).item() == tree.rms(torch.zeros(0, 3)).item() == 0


def test_norm_refuses_other_orders():
    with pytest.raises(ValueError, match="ord must be one of None, 1, 2, inf, got 3"):
        tree.norm(torch.ones(1), 3)


def test_norm_of_whole_numbers_and_truth_values():
    assert tree.norm([torch.tensor([3, 4]), torch.tensor([True, False])]).item() == pytest.approx(26**0.5)
    assert tree.norm(torch.tensor([3, -4]), 1).item() == 7
    assert tree.norm(torch.tensor([3, -4]), math.inf).item() == 4


def test_norm_of_mixed_dtypes_and_low_precision():
    mixed = [torch.full((1000,), 0.1, dtype=torch.bfloat16), torch.tensor([1.0], dtype=torch.float64)]
    want = math.sqrt(1000 * mixed[0][0].item() ** 2 + 1)
    assert tree.norm(mixed).dtype == torch.float64
    assert tree.norm(mixed).item() == pytest.approx(want, rel=1e-6)
    assert tree.norm(mixed[:1]).dtype == torch.float32
    assert tree.norm(torch.tensor([3 + 4j])).item() == pytest.approx(5)


def test_arithmetic():
    x, y = {"a": torch.tensor([1.0, 2.0]), "b": None}, {"a": torch.tensor([3.0, 5.0]), "b": None}
    assert tree.add(x, y)["a"].tolist() == [4, 7]
    assert tree.add(x, y, y)["a"].tolist() == [7, 12]
    assert tree.sub(x, y)["a"].tolist() == [-2, -3]
    assert tree.mul(x, y)["a"].tolist() == [3, 10]
    assert tree.div(y, x)["a"].tolist() == [3, 2.5]
    assert tree.lerp(x, y, 0.5)["a"].tolist() == [2, 3.5]
    assert tree.add_scale(x, 2.0, y)["a"].tolist() == [7, 12]
    assert tree.add_scale(x, torch.tensor(2.0), y)["a"].tolist() == [7, 12]
    assert tree.add_scale(x, 2.0, {"a": None, "b": None})["a"] is x["a"]
    assert tree.clip(y, 4.0)["a"].tolist() == [4, 5]
    assert tree.clip(y, None, torch.tensor(4.0))["a"].tolist() == [3, 4]
    assert tree.clip(y, torch.tensor(4.0), 4.5)["a"].tolist() == [4, 4.5]
    assert tree.clip(y)["a"] is y["a"]
    assert tree.where(True, x, y) is x
    assert tree.where(torch.tensor(False), x, y)["a"].tolist() == [3, 5]
    assert tree.ones_like(x)["a"].tolist() == [1, 1]
    assert tree.full_like(x, 7)["a"].tolist() == [7, 7]
    assert tree.zeros_like(x, torch.float64)["a"].dtype == torch.float64
    assert tree.batch_shape(x, (3,))["a"].shape == (3, 2)
    assert tree.allclose(x, x).item()
    assert not tree.allclose(x, y).item()
    assert tree.add(x, y)["b"] is None
    z = torch.tensor([1 + 2j])
    assert tree.conj(z).tolist() == [1 - 2j]
    assert tree.real(z).tolist() == [1]
    assert tree.vdot(z, z).item() == 5


def test_a_scalar_does_not_change_the_dtype_of_a_0_dim_leaf():
    leaf, scalar = torch.tensor(2.0), torch.tensor(3.0, dtype=torch.float64)
    for result in (
        tree.scale(scalar, leaf),
        tree.add_scale(leaf, scalar, leaf),
        tree.clip(leaf, scalar, scalar),
        tree.lerp(leaf, leaf, scalar),
        tree.bias_correction(leaf, 0.9, torch.tensor(1)),
        tree.update_moment(leaf, leaf, scalar * 0.1, 1),
        tree.update_moment_per_elem_norm(leaf, leaf, scalar * 0.1, 2),
        tree.update_infinity_moment(leaf, leaf, scalar, scalar),
        tree.div_by_root(leaf, leaf, scalar, scalar),
    ):
        assert result.dtype == torch.float32


def test_dtype_of_a_tree():
    mixed = [torch.ones(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.float16)]
    assert tree.dtype({}) == torch.float32
    assert tree.dtype(mixed[0]) == torch.bfloat16
    assert tree.dtype(mixed, "promote") == torch.float32
    assert tree.dtype([torch.ones(1), torch.ones(1, dtype=torch.float64)], "highest") == torch.float64
    assert tree.dtype([torch.ones(1), torch.ones(1, dtype=torch.float64)], "lowest") == torch.float32
    with pytest.raises(ValueError, match=r"different dtypes: torch.bfloat16, torch.float16"):
        tree.dtype(mixed)
    with pytest.raises(ValueError, match="mixed_dtype_handler must be one of"):
        tree.dtype(mixed, "largest")


def test_casts_and_carry():
    x = {"a": torch.ones(1), "b": torch.ones(1)}
    assert tree.cast(x, None) is x
    assert tree.cast(x, torch.float16)["a"].dtype == torch.float16
    like = tree.cast_like(x, {"a": torch.ones(1, dtype=torch.float64), "b": None})
    assert like["a"].dtype == torch.float64
    assert like["b"] is None
    kept = tree.carry({"a": torch.zeros(1, dtype=torch.float64), "b": None}, x)
    assert kept["a"].dtype == torch.float32
    assert kept["b"] is x["b"]


def test_count_lies_with_the_parameters_or_on_the_cpu():
    assert tree.count({}).device.type == "cpu"
    assert tree.count(torch.ones(1, device="meta")).is_meta
    assert tree.count([torch.ones(1, device="meta"), torch.ones(1)]).device.type == "cpu"
    assert tree.count({}).dtype == torch.int64


def test_init_moment():
    params = [torch.ones(1, dtype=d) for d in (torch.bfloat16, torch.float64, torch.complex64)]
    assert [m.dtype for m in tree.init_moment(params)] == [torch.float32, torch.float64, torch.complex64]
    assert [m.dtype for m in tree.init_moment(params, real=True)] == [torch.float32, torch.float64, torch.float32]
    assert tree.init_moment(params[1], torch.bfloat16).dtype == torch.bfloat16


def test_bias_correction_at_a_decay_of_zero_and_with_tensors():
    for decay in (0.0, torch.tensor(0.0)):
        assert tree.bias_correction(torch.ones(1), decay, torch.tensor(1)).item() == 1
    assert tree.bias_correction(torch.ones(1), 0.5, 1).item() == 2


def test_structure_mismatches_are_errors():
    x = torch.ones(1)
    for one, other in (({"a": x}, {"b": x}), ({"a": x}, [x]), ([x], (x,)), ([x], x), ([x], None), (Pair(x, x), (x, x))):
        with pytest.raises(ValueError, match="trees differ in structure"):
            tree.add(one, other)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        tree.add([x], [x, x])


def test_masks_and_labels():
    params = {"conv": {"weight": torch.ones(2, 2, 3), "bias": torch.ones(2)}, "norm.weight": torch.ones(2)}
    assert tree.is_matrix(params) == {"conv": {"weight": True, "bias": False}, "norm.weight": False}
    assert tree.mask_by_path(r"\.weight$")(params) == {"conv": {"weight": True, "bias": False}, "norm.weight": True}
    assert tree.mask_by(lambda p: p.numel() > 2)(params)["norm.weight"] is False
    labels = tree.label_by_path({r"bias$": "slow", "^conv": "fast"}, default="rest")(params)
    assert labels == {"conv": {"weight": "fast", "bias": "slow"}, "norm.weight": "rest"}
    assert tree.label_by(lambda p: str(p.ndim))(params)["conv"] == {"weight": "3", "bias": "1"}
    assert repr(tree.mask_by_path("x")) == "mask_by_path(pattern='x')"
    assert tree.mask_by_path("x") == tree.mask_by_path("x") != tree.mask_by_path("y")
    with pytest.raises(TypeError, match="predicate must be callable, got 'x'"):
        tree.mask_by("x")


def test_layers_are_numbered_from_the_input():
    labels = tree.label_by_layer(r"layer\.(\d+)\.", layers=12)
    params = {"embeddings": {"w": torch.ones(1)}, "layer": {str(i): {"w": torch.ones(1)} for i in (0, 3, 11)}}
    found = labels({**params, "norm": torch.ones(1)})
    assert found == {
        "embeddings": {"w": "0"},
        "layer": {"0": {"w": "1"}, "3": {"w": "4"}, "11": {"w": "12"}},
        "norm": "13",
    }
    with pytest.raises(ValueError, match=r"layers must be above.*got 3 and layer\.3\.w"):
        tree.label_by_layer(r"layer\.(\d+)\.", layers=3)(params)
    with pytest.raises(ValueError, match=r"pattern must have a group"):
        tree.label_by_layer(r"layer\.\d+", layers=3)
    assert labels == tree.label_by_layer(r"layer\.(\d+)\.", layers=12)


def test_labels_compile():
    params, label = {"a": torch.ones(2), "b": torch.ones(2)}, tree.label_by_path({"a": "x"}, "y")

    def f(p):
        return tree.map(lambda p, name: p * (2 if name == "x" else 3), p, label(p))

    out = torch.compile(f, fullgraph=True, backend="eager")(params)
    assert out["a"][0] == 2
    assert out["b"][0] == 3


class TestGetAndSet:
    def state(self):
        tx = of.named_chain(("first", of.adam(1e-3)), ("second", of.trace(0.9)))
        return tx.init({"w": torch.ones(1)})

    def test_get_by_field_class_and_key(self):
        state = self.state()
        assert tree.get(state, "trace")["w"].item() == 0
        assert tree.get(state, "TraceState") is state["second"]
        assert tree.get(state, "second") is state["second"]
        assert tree.get(state, "nothing") is None
        assert tree.get(state, "nothing", default=3) == 3

    def test_get_refuses_ambiguity_unless_filtered(self):
        state = self.state()
        with pytest.raises(KeyError, match="'w' occurs 3 times"):
            tree.get(state, "w")
        assert tree.get(state, "w", filtering=lambda path, value: "mu" in path).item() == 0
        assert len(tree.get_all_with_path(state, "w")) == 3

    def test_set_replaces_every_match(self):
        state = self.state()
        changed = tree.set(state, count=torch.tensor(5), TraceState=of.TraceState({"w": torch.ones(1)}))
        assert tree.get(changed, "count").item() == 5
        assert changed["second"].trace["w"].item() == 1
        assert tree.get(state, "count").item() == 0
        filtered = tree.set(state, lambda path, value: "mu" in path, w=torch.ones(1))
        assert filtered["first"][0].mu["w"].item() == 1
        assert filtered["first"][0].nu["w"].item() == 0

    def test_set_refuses_names_that_do_not_occur(self):
        with pytest.raises(KeyError, match="no value in the tree is called 'nothing'"):
            tree.set(self.state(), nothing=3)


PARAMS = {"w": torch.ones(2, 2), "b": torch.ones(2)}


class TestMapParams:
    @pytest.mark.parametrize(
        "tx",
        [of.adamw(1e-3), of.chain(of.trace(0.9), of.rmsprop(of.linear_schedule(0.0, 1.0, 5), centered=True))],
        ids=["adamw", "chain"],
    )
    def test_reaches_moments_and_not_counts(self, tx):
        state = tx.init(PARAMS)
        marked = tree.map_params(tx, lambda m, p: m + p, state, PARAMS, transform_non_params=lambda n: n - 1)
        for path, leaf in tree.leaves_with_path(marked):
            assert (leaf == (-1 if "count" in path else 1)).all(), path

    @pytest.mark.parametrize("mask", [{"w": True, "b": False}, of.tree.is_matrix])
    def test_passes_over_masked_leaves(self, mask):
        tx = of.masked(of.trace(0.9), mask)
        state = tx.init(PARAMS)
        marked = tree.map_params(tx.init, lambda m, p: m + p, state, PARAMS)
        assert marked.inner_state.trace["w"].sum() == 4
        assert marked.inner_state.trace["b"] == of.MaskedNode()

    def test_takes_the_part_of_the_parameters_that_the_state_mirrors(self):
        tx = of.lookahead(of.chain(of.trace(0.9), of.partition({"t": of.trace(0.9)}, "t")), 2, 0.5)
        params = of.LookaheadParams(
            {"w": torch.ones(2), "b": torch.ones(3)}, {"w": torch.zeros(2), "b": torch.zeros(3)}
        )
        state = tx.init(params)
        marked = tree.map_params(tx, lambda m, p: m + p, state, params)
        for path, leaf in tree.leaves_with_path(marked):
            assert (leaf == (0 if "steps_since_sync" in path else 1)).all(), path
        assert tree.structure(marked) == tree.structure(state)

    def test_reaches_stacks_whose_members_differ(self):
        tx = of.stacked(of.adam, learning_rate=torch.tensor([0.1, 0.2]))
        params = tree.map(lambda p: torch.stack([p, p]), PARAMS)
        marked = tree.map_params(tx, lambda m, p: m + p, tx.init(params), params)
        assert of.state_dict(marked).keys() == of.state_dict(tx.init(params)).keys()
        assert tree.get(marked, "mu")["w"].sum() == 8
        assert torch.equal(tree.get(marked, "learning_rate"), torch.tensor([0.1, 0.2]).double())

    def test_several_tensors_for_a_parameter_belong_to_it(self):
        tx = of.partition({"sm3": of.scale_by_sm3(), "none": of.set_to_zero()}, {"w": "sm3", "b": "none"})
        shapes = []
        tree.map_params(tx, lambda m, p: shapes.append((m.shape, p.shape)), tx.init(PARAMS), PARAMS)
        assert shapes == [((2,), (2, 2)), ((2,), (2, 2)), ((2, 2), (2, 2))]

    def test_calls_no_function_of_the_parameters(self):
        def chosen(params):
            return {"w": params["w"].ndim == 2, "b": False}

        for tx in (of.masked(of.trace(0.9), chosen), of.partition({True: of.trace(0.9), False: of.scale(1.0)}, chosen)):
            marked = tree.map_params(tx, lambda m: m + 1, tx.init(PARAMS))
            assert tree.get(marked, "trace")["w"].sum() == 4


def test_other_containers():
    t = OrderedDict(b=torch.ones(1), a=(torch.ones(1),))
    doubled = tree.scale(2.0, t)
    assert type(doubled) is OrderedDict
    assert list(doubled) == ["b", "a"]
    assert list(tree.scale(2.0, {"b": torch.ones(1), "a": torch.ones(1)})) == ["b", "a"]
    assert tree.broadcast(True, nested())["a"][2].right == (True,)


RANGE = [torch.tensor([3e20, 4e20]), torch.tensor([3e-25, 4e-25]), torch.tensor([2e38, 2e38, 2e38, 2e38])]


@pytest.mark.parametrize("x", RANGE, ids=str)
def test_norms_of_finite_leaves_neither_overflow_nor_vanish(x):
    norm = x.double().norm()
    torch.testing.assert_close(of.tree.norm(x, wide=True), norm)
    torch.testing.assert_close(of.tree.norm([x[:1], x[1:]], wide=True), norm)
    torch.testing.assert_close(of.tree.norm(x, squared=True, wide=True), norm**2, rtol=1e-12, atol=0)
    torch.testing.assert_close(of.tree.vdot(x, x, wide=True), norm**2, rtol=1e-12, atol=0)
    torch.testing.assert_close(of.tree.rms(x), (norm / len(x) ** 0.5).float())
    clip = of.chain(of.clip_by_global_norm(norm.item() / 4), of.scale(1.0))
    for backend in ("eager", "fused"):
        got, _ = of.make_step(clip, backend=backend)(torch.zeros_like(x), clip.init(x), x)
        torch.testing.assert_close(got.double() / norm, x.double() / norm / 4)
    torch.testing.assert_close(of.projection_l2_sphere(x), (x.double() / norm).float())
    torch.testing.assert_close(of.unitwise_norm(x[:2]), x[:2].double().norm().float().expand(2))
    assert torch.func.grad(of.tree.norm)(x).isfinite().all()


def test_norms_of_leaves_are_in_the_dtype_of_the_leaves_at_least_float32():
    for dtype, want in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.complex64, torch.float32),
    ):
        x = torch.ones(3, dtype=dtype)
        assert of.tree.norm(x).dtype == of.tree.rms(x).dtype == of.tree.norm(x, squared=True).dtype == want
        assert of.tree.norm(x, wide=True).dtype == of.tree.rms(x, wide=True).dtype == torch.float64
