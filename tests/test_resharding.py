"""Checkpoints of shards, read on another number of processes and in another layout; see `resharding` for the jobs."""

from pathlib import Path

import pytest
import torch
from helpers import assert_trees_equal
from ranks import on_ranks
from resharding import EVERY, OPTIMIZERS, all_rules, go_on, in_every_format, rules_of, train_on, uninterrupted

import optimfn as of

TIGHT = {torch.float32: 1e-6, torch.float64: 1e-10, torch.bfloat16: 0.02}


def close(got, want, dtype):
    """The same in all but the order of sums."""
    assert of.tree.structure(got) == of.tree.structure(want)
    for (path, x), y in zip(of.tree.leaves_with_path(got), of.tree.leaves(want), strict=True):
        assert x.dtype == y.dtype, path
        if y.is_floating_point():
            torch.testing.assert_close(
                x, y, rtol=TIGHT[dtype], atol=TIGHT[dtype], msg=lambda m, path=path: f"{path}: {m}"
            )
        else:
            assert torch.equal(x, y), path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_run_moves_from_layout_to_layout(dtype, tmp_path):
    legs = ["fsdp on 2", "fsdp on 4", "hsdp 2 x 2", "fsdp and tensor parallel", None]
    folders = [None, *(str(tmp_path / str(i)) for i in range(len(legs)))]
    for i, layout in enumerate(legs):
        args = dtype, 2 * i, 2 * i + 2, layout, folders[i], folders[i + 1]
        found = all_rules(*args) if layout is None else on_ranks("resharding.all_rules", *args)[0]
    for rule in rules_of(dtype):
        close(found[rule], uninterrupted(rule, dtype, 2 * len(legs)), dtype)


MODES = [(kind, "plain") for kind in OPTIMIZERS] + [("adamw", "flat"), ("lookahead", "flat"), ("adamw", "full")]


@pytest.mark.filterwarnings("ignore")  # torch's own, of its own functions
@pytest.mark.parametrize(("kind", "mode"), MODES)
def test_an_optimizer_moves_through_the_functions_of_torch(kind, mode, tmp_path):
    legs = ["fsdp on 2", "fsdp on 4", "hsdp 2 x 2", None]
    folders = [None, *(str(tmp_path / str(i)) for i in range(len(legs)))]
    for i, layout in enumerate(legs):
        args = kind, mode, torch.float32, 2 * i, 2 * i + 2, layout, folders[i], folders[i + 1]
        found = train_on(*args) if layout is None else on_ranks("resharding.train_on", *args)[0]
    close(found[0], train_on(kind, mode, torch.float32, 0, 8, None, None, None)[0], torch.float32)


@pytest.mark.filterwarnings("ignore")
def test_the_state_of_low_precision_stays_in_float32(tmp_path):
    for kind in ("adamw", "lookahead"):
        folder = str(tmp_path / kind)
        saved = on_ranks("resharding.train_on", kind, "plain", torch.bfloat16, 0, 2, "fsdp on 2", None, folder)[0]
        got = on_ranks("resharding.train_on", kind, "plain", torch.bfloat16, 2, 2, "fsdp on 4", folder, None)[0]
        assert got[1] == saved[1]
        assert got[1]["scale_by_adam.mu" if kind == "adamw" else "lookahead.fast_state.0.mu"] == torch.float32
        assert_trees_equal(got[0], saved[0])


def test_what_is_each_replicas_own_goes_to_others(tmp_path):
    for elastic in ("mean", "reset", "error"):
        folder = str(tmp_path / elastic)
        on_ranks("resharding.replicas", elastic, 4, folder, True)
        same = on_ranks("resharding.replicas", elastic, 4, folder, False)[0]
        assert torch.equal(same, torch.arange(12.0).reshape(4, 3))
        fewer = on_ranks("resharding.replicas", elastic, 2, folder, False)[0]
        if elastic == "error":
            assert fewer == "state.error.w comes from 4 replicas, and there are 2"
        else:
            row = torch.tensor([4.5, 5.5, 6.5]) if elastic == "mean" else torch.full((3,), -1.0)
            assert torch.equal(fewer, row.expand(2, 3))


def test_a_sum_in_parts_is_not_saved(tmp_path):
    assert all("params.w is a partial sum" in said for said in on_ranks("resharding.parts", str(tmp_path)))


def test_a_process_is_killed_and_others_go_on(tmp_path):
    at, dtype = 5, torch.float64
    with pytest.raises(AssertionError, match="it has died"):
        on_ranks("resharding.die", "adamw", dtype, "fsdp on 2", str(tmp_path), at)
    whole = [int(folder.name) for folder in Path(tmp_path).iterdir() if (folder / ".metadata").exists()]
    assert max(whole) == at - at % EVERY
    first, folder = max(whole), str(tmp_path / str(max(whole)))
    want = uninterrupted("adamw", dtype, 8)
    for layout in ("fsdp on 4", "fsdp on 2", "tensor parallel"):
        close(on_ranks("resharding.go_on", "adamw", dtype, first, 8, layout, folder, None)[0], want, dtype)
    alone = go_on("adamw", dtype, first, 8, None, folder, None)
    close(alone, want, dtype)


def test_steps_go_on_while_a_state_is_saved(tmp_path):
    assert on_ranks("resharding.saved_meanwhile", str(tmp_path)) == [[]] * 4


def test_checkpoints_go_from_format_to_format(tmp_path):
    for old, new in (("fsdp on 2", "fsdp and tensor parallel"), (None, "fsdp on 4")):
        folder = str(tmp_path / str(old))
        for layout, first in ((old, True), (new, False)):
            args = layout, folder, first
            found = [in_every_format(*args)] if layout is None else on_ranks("resharding.in_every_format", *args)
        assert not any(found), found
