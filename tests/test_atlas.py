"""The atlas: a tiny run, and what is in the docs of it."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture
def atlas(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("atlas")
    torch.set_num_threads(threads)
    for name in [name for name in sys.modules if name.startswith("atlas")]:
        del sys.modules[name]


def test_a_tiny_run_goes_on_where_it_was_and_draws(atlas, tmp_path, monkeypatch, capsys):
    out, rules = tmp_path / "atlas.json", sys.modules["atlas_rules"]
    families = {"Adam": {"adamw": rules.adamw, "sam(adamw)": rules.climbing}}
    monkeypatch.setattr(sys.modules["atlas_draw"], "FAMILIES", families)
    monkeypatch.setattr(atlas, "RATES", [0.01, 0.1])
    atlas.main(["adamw", "sam(adamw)", "--steps", "2", "--out", str(out), "--docs", str(tmp_path / "docs")])
    printed, found = capsys.readouterr(), json.loads(out.read_text())
    assert "| adamw | " in printed.out
    assert "100%" in printed.err
    assert set(found) == {"adamw", "sam(adamw)"}
    assert all(set(own) == set(atlas.TASKS) for own in found.values())
    assert all(len(values) == 2 for own in found.values() for values in own.values())
    assert [path.name for path in (tmp_path / "docs" / "images").iterdir()] == ["atlas-adam.svg"]
    tasks, saved = {"perceptron": atlas.TASKS["perceptron"](2)}, []
    first = found["adamw"].pop("perceptron")
    found["sam(adamw)"]["perceptron"] = [7.0, 7.0]
    atlas.run(list(found), tasks, found, lambda: saved.append(1))
    assert found["adamw"]["perceptron"] == pytest.approx(first, rel=1e-3)  # kept to four digits
    assert found["sam(adamw)"]["perceptron"] == [7.0, 7.0]  # what has been measured is not measured again
    assert len(saved) == 1


def test_every_optimizer_of_the_atlas_was_measured(atlas):
    found = json.loads((ROOT / "benchmarks" / "atlas.json").read_text())
    assert set(found) == set(sys.modules["atlas_rules"].RULES)
    assert all(set(own) == set(atlas.TASKS) for own in found.values())
    page = (ROOT / "docs" / "atlas.md").read_text()
    assert sys.modules["atlas_draw"].table(found, atlas.RATES) in page
    for family in sys.modules["atlas_rules"].FAMILIES:
        picture = f"atlas-{sys.modules['atlas_draw'].slug(family)}.svg"
        assert picture in page
        assert (ROOT / "docs" / "images" / picture).exists()
