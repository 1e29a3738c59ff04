"""`python -m optimfn.fused warm`: what it has compiled, processes that begin with nothing find in the cache."""

import pytest
import torch

import optimfn as of
from optimfn.fused import __main__ as command
from optimfn.fused.run import _build, _cache


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache, in a process that has loaded nothing."""
    monkeypatch.setenv("OPTIMFN_CACHE", str(tmp_path))
    monkeypatch.setattr(_build, "_loaded", _build._Loaded())
    return tmp_path


def model(dtype=torch.float32):
    made = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 30, bias=False)).to(
        dtype
    )
    for p in made.parameters():
        p.grad = torch.ones_like(p)
    return made


def test_rules_with_other_numbers_and_other_models_find_their_kernels(cache, monkeypatch, capsys):
    assert command.main(["warm", "adamw", "--dtype", "float32"]) == 0
    assert str(cache) in capsys.readouterr().out

    def refuse(*args):
        raise AssertionError("compiled")

    monkeypatch.setattr(_build, "_compile", refuse)
    clip, rule = of.clip_by_global_norm(0.3), of.adamw(3e-4, b1=0.8, weight_decay=0.2)
    for tx in (rule, of.chain(clip, rule), of.chain(clip, rule, of.params_ema(0.9))):
        for donate in (True, False):
            _build.forget()
            params = dict(model().named_parameters())
            params = {name: p.detach() for name, p in params.items()}
            of.make_step(tx, donate=donate, backend="fused")(params, tx.init(params), params)
        _build.forget()
        of.Optimizer(model().parameters(), tx, fused=True).step()
    _build.forget()
    of.optim.AdamW(model().parameters(), lr=0.3, betas=(0.8, 0.9), fused=True).step()
    _build.forget()
    with pytest.raises(RuntimeError, match="compiled"):
        of.make_step(of.lion(0.1), backend="fused")(torch.ones(3), of.lion(0.1).init(torch.ones(3)), torch.ones(3))


def test_what_was_loaded_before_does_not_decide_what_is_found(cache, monkeypatch):
    def step(tx):
        of.make_step(tx, donate=True, backend="fused")(torch.ones(3), tx.init(torch.ones(3)), torch.ones(3))

    for tx in (of.adamw(0.1), of.adam(0.2)):
        _build.forget()
        step(tx)
    compiled, build = [], _build._compile
    monkeypatch.setattr(_build, "_compile", lambda *args: compiled.append(args) or build(*args))
    for order in (of.adam, of.adamw), (of.adamw, of.adam):
        _build.forget()
        for make in order:
            step(make(0.3))
    assert not compiled


@pytest.mark.parametrize(
    ("arguments", "word"), [(["sdg"], "sdg"), (["sgd", "--dtype", "float23"], "float23"), (["tree"], "tree")]
)
def test_what_there_is_not_is_named(arguments, word, capsys):
    with pytest.raises(SystemExit):
        command.main(["warm", *arguments])
    assert word in capsys.readouterr().err


def test_without_a_compiler_it_says_so_and_fails(cache, monkeypatch, capsys):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert command.main(["warm", "sgd", "--dtype", "float32"]) == 1
    assert "no-such-compiler" in capsys.readouterr().out
    assert _cache.cache_directory() == cache
