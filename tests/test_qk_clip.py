"""QK-clip in every layout of heads, against the rule written out row by row."""

import pytest
import torch

import optimfn as of

LOGITS = torch.tensor([50.0, 400.0, 100.0, 900.0], dtype=torch.float64)
GAMMA = [1.0, 0.25, 1.0, 1 / 9]


def clipped(rows, p, u, key_heads=None, alpha=0.5):
    tx = of.qk_clip({r"^(layer)\.w$": rows}, alpha=alpha, key_heads=key_heads)
    params, updates = {"layer": {"w": p}}, {"layer": {"w": u}}
    found = tx.update(updates, tx.init(params), params, max_logits={"layer": LOGITS})[0]["layer"]["w"]
    return p + found


def by_rows(factors, p, u):
    return torch.stack([f * row for f, row in zip(factors, p + u, strict=True)])


def drawn(*shape):
    torch.manual_seed(0)
    return torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)


def each(gammas, size, power):
    return [g**power for g in gammas for _ in range(size)]


@pytest.mark.parametrize(
    ("rows", "key_heads", "factors"),
    [
        ("query", None, each(GAMMA, 6, 0.75)),
        ("key", None, each(GAMMA, 6, 0.25)),
        ("rope", None, each(GAMMA, 6, 1.0)),
        ("key", 2, each([0.25, 1 / 9], 12, 0.25)),
        (
            of.AttentionRows(("query", "key", None)),
            None,
            each(GAMMA, 2, 0.75) + each(GAMMA, 2, 0.25) + [1.0] * 8,
        ),
        (
            of.AttentionRows(("query", "key", None), (12, 6, 6)),
            2,
            each(GAMMA, 3, 0.75) + each([0.25, 1 / 9], 3, 0.25) + [1.0] * 6,
        ),
        (
            of.AttentionRows(("query", "rope"), (4, 2), by_head=True),
            None,
            [f for g in GAMMA for f in [g**0.75] * 4 + [g] * 2],
        ),
        (of.AttentionRows(("key", None), by_head=True), None, [f for g in GAMMA for f in [g**0.25] * 3 + [1.0] * 3]),
    ],
)
def test_heads_are_shrunk_where_their_rows_lie(rows, key_heads, factors):
    for shape in ((24, 3), (24,), (24, 2, 2)):
        p, u = drawn(*shape)
        torch.testing.assert_close(
            clipped(rows, p, u, key_heads, alpha=0.75), by_rows(factors, p, u), rtol=1e-12, atol=0
        )


def test_what_is_not_too_large_is_left_to_the_bit():
    p, u = drawn(24, 3)
    tx = of.qk_clip({"(w)": "query"})
    for logits in (torch.full((4,), 100.0), torch.tensor([float("nan"), float("inf"), -5.0, 0.0])):
        assert torch.equal(tx.update({"w": u}, tx.init({"w": p}), {"w": p}, max_logits={"w": logits})[0]["w"], u)


def test_messages_name_what_is_missing():
    p, u = drawn(6, 3)
    tx = of.qk_clip({"(w)": "query"})
    with pytest.raises(ValueError, match="qk_clip needs the extra argument max_logits"):
        tx.update({"w": u}, tx.init({"w": p}), {"w": p})
    with pytest.raises(ValueError, match="max_logits must have the layer 'w', got 'v'"):
        tx.update({"w": u}, tx.init({"w": p}), {"w": p}, max_logits={"v": LOGITS})
    with pytest.raises(ValueError, match="the heads must divide the 6 rows of 'w', got 4 in max_logits"):
        tx.update({"w": u}, tx.init({"w": p}), {"w": p}, max_logits={"w": LOGITS})
    with pytest.raises(ValueError, match="key_heads must divide the 4 heads of max_logits, got 3"):
        clipped("key", *drawn(12, 2), key_heads=3)
    with pytest.raises(ValueError, match="qk_clip must see the finished step"):
        of.chain(tx, of.adam(0.1))
    with pytest.warns(UserWarning, match=r"matches the pattern '\(q\)' of qk_clip"):
        of.Optimizer([("w", torch.nn.Parameter(p))], of.chain(of.torch_muon(0.1), of.qk_clip({"(q)": "query"})))
