"""Run what the docs show and write down what it prints and draws.

    PYTHONPATH=. python docs/_record.py [page ...]

Pages are those with blocks fenced as `text title="Output"`. Such a block belongs to the example that the page includes
before it, or, if there is none, to the Python block before it. Pictures go to images/ beside the page.
"""

import io
import os
import re
import subprocess
import sys
import tempfile
from contextlib import chdir, redirect_stdout
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r'^```(python|py|text title="Output")\n(.*?)^```$', re.MULTILINE | re.DOTALL)
EXAMPLE = re.compile(r'--8<-- "examples/(\w+\.py)"')


def run_example(name: str) -> str:
    command, environment = (
        [sys.executable, ROOT / "examples" / name],
        {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def run_block(code: str, namespace: dict) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def transparent(picture: Image.Image) -> Image.Image:
    """The picture without its white ground: over white it is the same, and a dark page shows through."""
    shade = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
    alpha = 1 - shade.min(axis=-1, keepdims=True)
    colour = (shade - (1 - alpha)) / np.maximum(alpha, 1e-9)
    layers = np.concatenate([colour, alpha], axis=-1).clip(0, 1) * 255
    return Image.fromarray(layers.round().astype(np.uint8), "RGBA").quantize(128, method=Image.Quantize.FASTOCTREE)


def record(page: Path) -> None:
    namespace, printed = {"__name__": "page"}, ""

    def visit(block: re.Match) -> str:
        nonlocal printed
        kind, body = block.groups()
        if kind == "python":
            printed = run_block(body, namespace)
        elif example := EXAMPLE.search(body):
            printed = run_example(example[1])
        elif kind.startswith("text"):
            return f"```{kind}\n{printed.rstrip()}\n```"
        return block[0]

    with tempfile.TemporaryDirectory() as place, chdir(place):
        page.write_text(BLOCK.sub(visit, page.read_text()))
        for picture in sorted(Path(place).rglob("*.png")):
            target = page.parent / "images" / picture.name
            target.parent.mkdir(exist_ok=True)
            transparent(Image.open(picture)).save(target, optimize=True)


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    named = [Path(name).resolve() for name in sys.argv[1:]]
    for path in named or sorted((ROOT / "docs").rglob("*.md")):
        if 'text title="Output"' in path.read_text():
            print(path.relative_to(ROOT))
            record(path)
