"""Replicas that step by themselves and meet now and then, against the same in one process and torch's averagers."""

import meetings
import pytest
import torch
from ranks import on_ranks

import optimfn as of


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", meetings.RULES)
def test_replicas_do_what_one_process_computes(name, size):
    wanted = meetings.simulated(size, **meetings.SIMULATED[name])
    for (params, *_), one in zip(on_ranks("meetings.run", name, size)[:size], wanted, strict=True):
        for leaf, value in params.items():
            # Two summands have one sum; of four the order matters. The momentum of SlowMo is written out there.
            exact = size == 2 and name != "slowmo"
            torch.testing.assert_close(value, one[leaf], rtol=0, atol=0 if exact else 1e-6)


@pytest.mark.parametrize("name", ["local sgd", "diloco", "slowmo", "warmup"])
def test_replicas_are_equal_after_every_meeting_and_at_no_other_time(name):
    _, equal, _ = on_ranks("meetings.run", name, 2)[0]
    due = [3, 7, 11, 15] if name != "warmup" else [2, 6, 10, 14]
    assert [i for i, same in enumerate(equal) if same] == due


@pytest.mark.parametrize("at", [5, 11], ids=["between meetings", "while one is on its way"])
@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
def test_what_is_saved_between_meetings_goes_on_exactly(tmp_path, at, donate):
    name = "top-k" if donate else "late and mixed"
    whole = on_ranks("meetings.run", name, 2)
    on_ranks("meetings.cut_off", name, str(tmp_path), at, 2)
    for (wanted, *_), (got, _) in zip(
        whole[:2], on_ranks("meetings.go_on", name, str(tmp_path), at, 2, donate)[:2], strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_other_replicas_go_on_from_the_mean(tmp_path):
    on_ranks("meetings.cut_off", "late and mixed", str(tmp_path), 11, 2)
    read = [one[1] for one in on_ranks("meetings.go_on", "late and mixed", str(tmp_path), 11, 2)[:2]]
    for params, state in [one[1] for one in on_ranks("meetings.go_on", "late and mixed", str(tmp_path), 11, 4)]:
        for name in meetings.SHAPES:
            for mine, (one, other) in [
                (params[name], [p[name] for p, _ in read]),
                (state.inner[0].nu[name], [s.inner[0].nu[name] for _, s in read]),
                (state.sent[name], [s.sent[name] for _, s in read]),
                (state.anchor[name], [s.anchor[name] for _, s in read]),
            ]:
                torch.testing.assert_close(mine, (one + other) / 2, rtol=1e-6, atol=1e-7)
        assert int(state.count) == 11
        assert int(state.inner[0].count) == 11


def test_an_ordinary_loop_saves_and_resumes_on_the_same_and_on_other_replicas(tmp_path):
    whole = on_ranks("meetings.behind_optimizer", 2, range(13), None, True)
    on_ranks("meetings.behind_optimizer", 2, range(7), None, True, str(tmp_path))
    resumed = on_ranks("meetings.behind_optimizer", 2, range(7, 13), str(tmp_path))
    for (wanted, rate), (got, _) in zip(whole[:2], resumed[:2], strict=True):
        assert rate == 0.05
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    four = on_ranks("meetings.behind_optimizer", 4, range(7, 12), str(tmp_path))
    # The first fragment has met in step 10, the second in step 12.
    for got, _ in four[1:]:
        torch.testing.assert_close(got["2.weight"], four[0][0]["2.weight"], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["periodic", "hierarchical", "post-local"])
def test_what_torch_has_gives_the_same(name):
    """Torch counts steps from 0, and so averages first after that of the warm-up."""
    for ours, theirs in on_ranks("meetings.beside_torch", name):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_meeting_that_fails_changes_nothing_and_comes_later():
    for before, after, params in on_ranks("meetings.lose_one")[:2]:
        torch.testing.assert_close(after, before, rtol=0, atol=0)
        torch.testing.assert_close(params, on_ranks("meetings.lose_one")[0][2], rtol=0, atol=0)


def test_bytes_and_calls():
    calls = on_ranks("meetings.count_calls")[0]
    assert calls == {"local sgd": [(4, 46 * 4)], "diloco": [(4, 46 * 4)], "fragments": [(2, 39 * 4), (4, 7 * 4)]}


def test_arguments_are_judged():
    sgd, outer = of.sgd(0.1), of.distributed.outer_sync
    with pytest.raises(TypeError, match="inner must be a GradientTransformation, got 3"):
        outer(3, None, None, 4)
    with pytest.raises(TypeError, match="outer must be a GradientTransformation"):
        outer(sgd, 0.7, None, 4)
    with pytest.raises(ValueError, match=r"every must be .*, got 0"):
        outer(sgd, None, None, 0)
    with pytest.raises(ValueError, match="every must be a multiple of fragments=3, got 4"):
        outer(sgd, sgd, None, 4, fragments=3)
    with pytest.raises(ValueError, match="delay must be below every / fragments = 2, got 2"):
        outer(sgd, sgd, None, 4, fragments=2, delay=2)
    with pytest.raises(ValueError, match=r"alpha must be .*, got 1.5"):
        outer(sgd, sgd, None, 4, alpha=1.5)
    with pytest.raises(ValueError, match=r"split must be .*, got 'rows'"):
        outer(sgd, sgd, None, 4, split="rows")
    with pytest.raises(ValueError, match="give an outer rule"):
        outer(sgd, None, None, 4, compress=torch.bfloat16)
    with pytest.raises(TypeError, match="group must be a process group, a DeviceMesh"):
        outer(sgd, None, "world", 4)
    with pytest.raises(ValueError, match="the periods must differ"):
        of.distributed.hierarchical_sgd(sgd, [(2, None), (2, None)])
    with pytest.raises(ValueError, match="lr must be given"):
        of.distributed.slowmo(of.scale(-0.1), None)
    tx = outer(sgd, sgd, None, 2, fragments=2, split=lambda path: 2)
    with pytest.raises(ValueError, match="split must return a number below 2, got 2 for a"):
        tx.init({"a": torch.ones(2)})
    with pytest.raises(ValueError, match="outer_sync needs the parameters"):
        outer(sgd, None, None, 2).update({"a": torch.ones(2)}, outer(sgd, None, None, 2).init({"a": torch.ones(2)}))
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda g: outer(sgd, None, None, 2).update(g, outer(sgd, None, None, 2).init(g), g)[0])(
            torch.ones(2, 3)
        )


def test_those_who_are_left_can_meet():
    """The group is asked for in every meeting, so an object that stands for one may change it."""
    for first, second in on_ranks("meetings.lose_half")[:2]:
        assert (first, second) == (True, True)


def test_zero_refuses_a_rule_of_replicas():
    with pytest.raises(ValueError, match="zero cuts leaves into shards, which is nothing for diloco"):
        of.distributed.zero(of.distributed.diloco(of.sgd(0.1), None, 4), None)
