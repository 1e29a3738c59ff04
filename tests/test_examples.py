"""Examples, the README and the docs: what is printed there must run."""

import re
import runpy
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from ranks import on_ranks

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FRAMEWORKS = {"accelerate", "lightning", "safetensors", "transformers"}  # the extra "clients"; not everyone has them
BLOCK = re.compile(r"^```python.*?\n(.*?)^```", re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r'^```text title="Output"\n(.*?)^```', re.MULTILINE | re.DOTALL)  # docs/_record.py writes it


def blocks(page):
    return BLOCK.findall(page.read_text())


def frameworks(page):
    imported = re.findall(r"^(?:import|from) (\w+)", "\n".join(blocks(page)), re.MULTILINE)
    return sorted(FRAMEWORKS.intersection(imported))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's forward mode
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_code_on_the_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in frameworks(page):
        warnings.simplefilter("ignore")  # frameworks warn of much that is not ours to mend
        pytest.importorskip(name)
    namespace = {"__name__": "page"}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), namespace)
    printed = capsys.readouterr().out
    assert all(output in printed for output in OUTPUT.findall(page.read_text()))


def example(name):
    return runpy.run_path(str(ROOT / "examples" / name), run_name="example")


def test_every_example_is_run_here():
    named = set(re.findall(r'example(?:_on)?\("(\w+\.py)"', Path(__file__).read_text()))
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == named


def test_every_example_is_short_and_in_the_gallery():
    shown = "\n".join(page.read_text() for page in (ROOT / "docs" / "gallery").glob("*.md"))
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) < 80, path.name
        assert f'--8<-- "examples/{path.name}"' in shown, f"no page of docs/gallery shows {path.name}"


def test_functional_loop(capsys):
    example("functional_loop.py")["main"](steps=3)
    assert capsys.readouterr().out


def test_custom_transform(capsys):
    example("custom_transform.py")["main"](steps=3)
    assert capsys.readouterr().out


def test_digits_pure(capsys):
    accuracy = example("digits_pure.py")["main"](epochs=1)
    assert accuracy > 0.5
    assert f"test accuracy {accuracy:.2%}" in capsys.readouterr().out


def test_step_clock(capsys):
    example("step_clock.py")["main"](steps=3, size=8)
    assert capsys.readouterr().out.count("3 steps") == 2


def test_digits_stateful():
    module = example("digits_stateful.py")
    assert module["main"](epochs=1, train=module["train"]) > 0.5


def test_train_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_digits.py"])
    picture = tmp_path / "digits.png"
    results = example("train_digits.py")["main"](["--epochs", "1", "--out", str(picture)])
    assert len(results) == 3
    assert picture.stat().st_size > 1000


def test_population(tmp_path):
    picture = tmp_path / "population.png"
    together, one_by_one = example("population.py")["main"](members=3, epochs=1, out=picture)
    torch.testing.assert_close(together[:2], one_by_one[:2], atol=0.01, rtol=0)  # the largest rate diverges
    assert picture.stat().st_size > 1000


def test_maml(tmp_path):
    picture = tmp_path / "maml.png"
    curve = example("maml.py")["main"](iterations=30, tests=20, out=picture)
    assert curve[-1][1] < curve[0][1]
    assert picture.stat().st_size > 1000


def test_learned_rates():
    losses, _ = example("learned_rates.py")["main"](iterations=5)
    assert losses[-1] < losses[0]


def test_learned_decay(capsys):
    slope, quotient, _ = example("learned_decay.py")["main"](iterations=1)
    assert slope == pytest.approx(quotient, rel=1e-6)
    assert "by differentiation" in capsys.readouterr().out


def test_gpt(capsys):
    assert example("gpt.py")["main"](steps=2) < 8.5
    assert capsys.readouterr().out.count("bits per byte") == 3


def test_gpt_optimizers(capsys, tmp_path):
    found = example("gpt_optimizers.py")["main"](steps=1, picture=str(tmp_path / "losses.png"))
    assert len(found) == 5
    assert (tmp_path / "losses.png").exists()
    assert capsys.readouterr().out.count("AdamW's time") == 5


def test_accumulation_is_a_larger_batch():
    assert example("accumulation.py")["main"](steps=3, k=4) < 1e-5


def test_ema_evaluation(capsys):
    assert len(example("ema_evaluation.py")["main"](epochs=1)) == 2
    assert capsys.readouterr().out


def test_minmax():
    plain, optimistic = example("minmax.py")["main"](steps=200)
    assert optimistic < 1 < plain


def test_logistic_regression_ends_where_another_solver_does():
    assert abs(example("logistic_regression.py")["main"]()) < 1e-9


def example_on(name, *args):
    """The same on the first ranks; see `ranks`."""
    return on_ranks("meshes.example", name, *args)[0]


def test_fsdp(tmp_path):
    losses, printed = example_on("fsdp.py", "two", 2, str(tmp_path / "start"))
    assert set(losses) == {1, 2}
    assert printed.count("        3    590.2\n") == 2  # what the optimizer sends
    found = {}
    for mesh in ("one", "two", "four"):
        shutil.copytree(tmp_path / "start", tmp_path / mesh)
        found[mesh], printed = example_on("fsdp.py", mesh, 4, str(tmp_path / mesh))
        assert set(found[mesh]) == {3, 4}
        assert printed.count("\n") == 2
    # Muon rounds to bfloat16, which makes more of the order of sums.
    assert found["one"] == pytest.approx(found["two"], rel=1e-4)
    assert found["four"] == pytest.approx(found["two"], rel=1e-4)


def test_diloco(tmp_path):
    results, printed = example_on("diloco.py", "two", 8, str(tmp_path), 4)
    losses, sent = ({name: result[i] for name, result in results.items()} for i in (0, 1))
    assert losses["diloco"] == pytest.approx(losses["every gradient"], rel=0.2)
    # Every fourth step, and of that half in bfloat16.
    assert sent["diloco"] == sent["every gradient"] / 4
    assert sent["streaming"] == pytest.approx(sent["diloco"] / 2, rel=0.3)  # its last half is not on its way yet
    assert printed.count("kB a step") == 3
    results, _ = example_on("diloco.py", "four", 12, str(tmp_path), 4)  # goes on from there
    assert results["diloco"][0] < 4 < 5.55  # of bytes that are drawn at random


def test_daso(tmp_path):
    results, printed = example_on("daso.py", "square", 4, str(tmp_path), 8)
    assert [skips for _, skips, _ in results] == [(0, 0), (4, 1), (4, 1), (0, 0)]
    assert results[-1][0] < results[0][0]
    assert results[1][2] < results[0][2] * 0.7
    assert printed.count("\n") == 4


def test_powersgd():
    found, printed = example_on("powersgd.py", "two", 2)
    assert printed.count("\n") == 4
    kept = [sent for _, sent, _ in found.values()]
    assert kept[0] == 4 * sum(p.numel() for p in found["all_reduce_mean"][2])
    assert kept[0] > 10 * kept[1] > 20 * kept[2]
