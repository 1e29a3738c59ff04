"""The notebooks have the code of their pages, which `test_examples.py` runs."""

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAKER = runpy.run_path(str(ROOT / "docs" / "_notebooks.py"), run_name="notebooks")


def code(notebook):
    return [cell["source"] for cell in json.loads(notebook)["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", MAKER["PAGES"])
def test_the_code_of_a_notebook_is_that_of_its_page(name):
    own = code((ROOT / "notebooks" / f"{name}.ipynb").read_text())
    assert own == code(MAKER["notebook"](MAKER["PAGES"][name])), "run: python docs/_notebooks.py"
    assert len(own) >= 3


def test_every_notebook_has_a_page():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == set(MAKER["PAGES"])
