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
            Image.open(picture).convert("RGB").quantize(128).save(target, optimize=True)


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    named = [Path(name).resolve() for name in sys.argv[1:]]
    for path in named or sorted((ROOT / "docs").rglob("*.md")):
        if 'text title="Output"' in path.read_text():
            print(path.relative_to(ROOT))
            record(path)
