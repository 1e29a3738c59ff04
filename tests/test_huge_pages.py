"""Joining the pages of tensors changes no value, whatever the system answers."""

import sys

import pytest
import torch

import optimfn as of
from optimfn.fused.run import _huge_pages, _settings

SIZE = 3_000_000  # three tensors and a gradient of 12 MB


@pytest.fixture
def asked(monkeypatch):
    """The stretches of memory that the system is asked to join."""
    found = []

    def madvise(start, size, advice):
        found.append((start, size, advice))
        return -1  # refused

    monkeypatch.setattr(_huge_pages, "_madvise", lambda: madvise)
    monkeypatch.setattr(_huge_pages, "_done", set())
    monkeypatch.setattr(_huge_pages.sys, "platform", "linux")
    return found


def run(steps, step=None, params=None, state=None):
    step = step or of.make_step(of.adamw(0.1), donate=True, backend="fused")
    params = {"w": torch.zeros(SIZE)} if params is None else params
    state = of.adamw(0.1).init(params) if state is None else state
    grads = {"w": torch.ones(SIZE)}
    for _ in range(steps):
        step(params, state, grads)
    return step, params, state, grads


def pages(asked):
    return [
        page // _huge_pages._HUGE for start, size, _ in asked for page in range(start, start + size, _huge_pages._HUGE)
    ]


def covers(asked, x):
    first, last = x.data_ptr() // _huge_pages._HUGE, (x.data_ptr() + x.nbytes - 1) // _huge_pages._HUGE
    return set(range(first, last + 1)) <= set(pages(asked))


def test_all_that_a_donating_step_meets_is_joined_once_outward_to_borders(asked):
    step, params, state, grads = run(8)
    assert all(start % _huge_pages._HUGE == 0 == size % _huge_pages._HUGE for start, size, _ in asked)
    assert {advice for *_, advice in asked} == {25}
    for x in (*params.values(), *grads.values(), *(x for x in of.tree.leaves(state) if x.ndim)):
        assert covers(asked, x)
    assert len(pages(asked)) == len(set(pages(asked)))
    before = len(asked)
    run(4, step, params, state)
    assert len(asked) == before


def test_new_memory_is_joined_when_it_stays(asked):
    step, params, state, _ = run(4)
    moved = params["w"].data = params["w"].clone()
    run(1, step, params, state)
    before = len(asked)
    run(4, step, params, state)
    assert len(asked) >= before
    assert covers(asked, moved)


def test_short_lives_small_models_and_pure_steps_ask_for_nothing(asked):
    run(1)
    small = {"w": torch.zeros(1000)}
    tx = of.adamw(0.1)
    state, step = tx.init(small), of.make_step(tx, donate=True, backend="fused")
    for _ in range(6):
        step(small, state, small)
    run(5, of.make_step(tx, backend="fused"))
    assert not asked


def test_a_setting_and_a_variable_turn_it_off(asked, monkeypatch):
    monkeypatch.setenv("OPTIMFN_HUGE_PAGES", "0")
    run(5)
    assert not asked
    monkeypatch.setattr(_settings.settings, "_said", {})
    assert of.fused.memory_settings(huge_pages=True).huge_pages
    assert _huge_pages.join_pages([torch.zeros(_huge_pages.WORTH)])
    assert not of.fused.memory_settings(huge_pages=False).huge_pages
    assert not _huge_pages.join_pages([torch.zeros(2 * _huge_pages.WORTH)])


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_left_alone(asked, monkeypatch, system):
    monkeypatch.setattr(_huge_pages.sys, "platform", system)
    assert _huge_pages.join_pages([torch.zeros(_huge_pages.WORTH)]) == 0
    assert not asked


def test_a_library_without_the_call_is_no_error(monkeypatch):
    monkeypatch.setattr(_huge_pages, "_madvise", lambda: None)
    assert _huge_pages.join_pages([torch.zeros(_huge_pages.WORTH)]) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
def test_no_value_changes():
    x = torch.arange(_huge_pages.WORTH // 4, dtype=torch.float32)
    want = x.clone()
    _huge_pages._done.clear()
    assert _huge_pages.join_pages([x, x[100:], torch.zeros(3)]) == 1
    assert torch.equal(x, want)


def test_stretches():
    assert list(_huge_pages._stretches([1, 2, 3, 7, 9, 10])) == [(1, 3), (7, 7), (9, 10)]
    assert not list(_huge_pages._stretches([]))
