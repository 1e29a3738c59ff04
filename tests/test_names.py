"""The tables of names that other libraries have: complete, and each composition steps."""

import re
from pathlib import Path

import pytest
import torch

import optimfn as of

PAGE = (Path(__file__).parent.parent / "docs" / "names-elsewhere.md").read_text()
SECTIONS = {
    "timm": "timm",
    "trainer": "Hugging Face Trainer",
    "heavyball": "HeavyBall",
    "pytorch_optimizer": "pytorch_optimizer",
}
NAMES = {"of": of, "rate": of.cosine_decay_schedule(1e-3, 10_000), "peak": 1e-3, "wd": 0.01}


def table(heading):
    """The rows of a section: names, and what is written beside them."""
    section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)[1]
    return re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE)


@pytest.mark.parametrize("library", SECTIONS)
def test_every_name_is_told_once(library):
    names = (Path(__file__).parent / "names" / f"{library}.txt").read_text().split()
    assert sorted(name for name, _ in table(SECTIONS[library])) == sorted(names)


def compositions():
    told = {said.strip("`") for heading in SECTIONS.values() for _, said in table(heading) if said.startswith("`")}
    return sorted(told)


@pytest.mark.parametrize("code", compositions())
def test_every_composition_steps(code):
    tx = eval(code, dict(NAMES))
    params = {"w": torch.randn(4, 3), "b": torch.randn(3)}
    state = tx.init(params)
    extra = {"obj_fn": lambda p: sum((x**4).sum() for x in p.values())}
    for _ in range(3):
        grads = {name: torch.randn_like(p) for name, p in params.items()}
        updates, state = tx.update(grads, state, params, **extra)
        params = of.apply_updates(params, updates)
    assert all(p.isfinite().all() for p in of.tree.leaves(params))


def test_what_is_not_here_has_a_reason():
    for heading in SECTIONS.values():
        for name, said in table(heading):
            assert said.startswith(("`", "not here")), name
