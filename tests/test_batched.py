"""Small matrices in one product: as one by one, whatever the shapes, and together where it pays."""

import torch
from helpers import assert_trees_equal

import optimfn as of


def matrices(*shapes, dtype=torch.float64):
    torch.manual_seed(5)
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def test_it_is_what_it_is_one_by_one():
    xs = matrices((3, 3), (2, 3), (3, 3), (200, 200), (0, 4), (0, 4), (), (5,), (5,), (2, 2, 3), (2, 2, 3))
    tree = {"a": xs[:4], "b": (*xs[4:], None)}
    assert_trees_equal(of.tree.batched(torch.sin, tree), of.tree.map(torch.sin, tree))


def test_those_of_one_shape_and_dtype_come_together_within_the_bound():
    seen = []

    def look(x):
        seen.append((tuple(x.shape), x.dtype))
        return x

    xs = [*matrices((4, 4), (4, 5), (4, 4), (300, 300), (300, 300), (4, 4)), *matrices((4, 4), dtype=torch.float32)]
    of.tree.batched(look, xs)
    assert sorted(seen, key=str) == sorted(
        [
            ((3, 4, 4), torch.float64),
            ((4, 5), torch.float64),
            ((300, 300), torch.float64),
            ((300, 300), torch.float64),
            ((4, 4), torch.float32),
        ],
        key=str,
    )
    seen.clear()
    of.tree.batched(look, xs[:1] * 5, bound=2 * 8 * 16)
    assert [shape for shape, _ in seen] == [(4, 4), (2, 4, 4), (2, 4, 4)]


def test_functions_of_several_trees_may_return_several():
    xs, ys = matrices((3, 4), (3, 4), (2, 2)), matrices((4, 2), (4, 2), (2, 1))
    products, norms = of.tree.batched(lambda x, y: (x @ y, x.square().sum((-2, -1))), xs, ys)
    for x, y, product, norm in zip(xs, ys, products, norms, strict=True):
        torch.testing.assert_close(product, x @ y)
        torch.testing.assert_close(norm, x.square().sum())
    assert of.tree.batched(torch.sin, []) == []


def test_products_of_muon_in_kernels_end_where_they_begin():
    """The memory of a large matrix whose products are done holds the result, and steps are those of the rule."""
    torch.manual_seed(3)
    params = {n: torch.randn(s) for n, s in {"a": (140, 200), "b": (200, 140), "c": (8, 4), "d": (4, 8)}.items()}
    grads = [of.tree.map(torch.randn_like, params) for _ in range(3)]
    tx = of.torch_muon(0.1, weight_decay=0.1)
    found = []
    for step in (of.make_step(tx, donate=True, backend="fused"), of.make_step(tx, backend="eager")):
        own = of.tree.map(torch.clone, params)
        state = tx.init(own)
        for grad in grads:
            own, state = step(own, state, grad)
        found.append(own)
    for name, x in found[0].items():
        assert (x - found[1][name]).norm() < 2e-2 * 0.3 * x.numel() ** 0.5, name
