"""Make the notebooks in notebooks/ of pages of the docs, whose code the tests run: python docs/_notebooks.py"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = {
    "getting-started": "quickstart.md",
    "ensembles": "guides/ensembles.md",
    "meta-learning": "guides/meta-learning.md",
}
BLOCK = re.compile(r"^```python.*?\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r'^```text title="Output"\n.*?^```\n', re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]+)\](?:\((?!http)[^)]*\)|\[[^\]]*\])")  # to other pages, which a notebook has not beside it


def notebook(page: str) -> str:
    """A page as a notebook: its text without links to other pages, its Python code as cells to run."""
    text = OUTPUT.sub("", (ROOT / "docs" / page).read_text())
    cells = []
    for number, piece in enumerate(BLOCK.split(text)):
        if not piece.strip():
            continue
        if number % 2:
            cells.append(
                {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": piece.strip()}
            )
        else:
            cells.append({"cell_type": "markdown", "metadata": {}, "source": LINK.sub(r"\1", piece.strip())})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, page in PAGES.items():
        (ROOT / "notebooks" / f"{name}.ipynb").write_text(notebook(page))
