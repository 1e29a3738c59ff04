"""What type checkers say of code as users write it, and of mistakes in it."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = ROOT / "tests" / "user_code.py"
MISTAKES = [
    'of.adamw("0.1")',
    "of.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100).repeat()",
    "of.chain(of.adam)",
    "assert_type(of.apply_updates(params, updates), list[Tensor])",
]

PYRIGHT = shutil.which("pyright")
MYPY = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
CHECKERS = [
    pytest.param(
        MYPY, id="mypy", marks=pytest.mark.skipif(find_spec("mypy") is None, reason="needs the extra `check`")
    ),
    pytest.param(
        [PYRIGHT, "--pythonpath", sys.executable],
        id="pyright",
        marks=pytest.mark.skipif(PYRIGHT is None, reason="needs the extra `pyright`"),
    ),
]


@pytest.mark.parametrize("command", CHECKERS)
def test_user_code_is_well_typed_and_mistakes_are_not(command, tmp_path):
    wrong = tmp_path / "wrong_code.py"
    wrong.write_text(CODE.read_text() + "".join(f"\n{line}\n" for line in MISTAKES))
    environment = {**os.environ, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([*command, str(CODE), str(wrong)], cwd=ROOT, env=environment, capture_output=True, text=True)
    said = ran.stdout.splitlines()
    assert not [line for line in said if re.search(r"user_code\.py:\d+", line)], ran.stdout
    found = {int(number[1]) for line in said if (number := re.search(r"wrong_code\.py:(\d+):.*error", line))}
    lines = wrong.read_text().splitlines()
    assert found == {lines.index(line) + 1 for line in MISTAKES}, ran.stdout + ran.stderr
