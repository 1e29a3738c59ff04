"""The table from optax to here: it has every name, and what it says is so."""

import re
from pathlib import Path

import pytest

import optimfn as of

ROOT = Path(__file__).parent.parent
NAMES = (ROOT / "tests" / "optax_names.txt").read_text().split()  # all public names, without the leading `optax.`
TOP_LEVEL_HERE = ("transforms.", "schedules.", "projections.")


def rows():
    """`(names, what is said of them)` for every row."""
    page = (ROOT / "docs" / "coming-from-optax.md").read_text()
    table = page[page.index("## Name by name") : page.index("## Extra")]
    for line in table.splitlines():
        cells = re.fullmatch(r"\| (`.*`) \| (.*) \|", line)
        if cells:
            yield re.findall(r"`([^`]+)`", cells[1]), cells[2]


ROWS = list(rows())


def keys(name):
    """The names under which the table may have a name."""
    if name.startswith("tree_utils.tree_"):
        return (name, "tree." + name.removeprefix("tree_utils.tree_"))
    if name.startswith(TOP_LEVEL_HERE):
        return (name, name.split(".")[1])
    return (name,)


def here(name):
    """What a name of optax is here, if it has the same."""
    module, _, last = name.rpartition(".")
    return getattr(of.tree if module == "tree" else of, last, None)


@pytest.mark.parametrize("name", NAMES)
def test_the_table_has_every_name_of_optax(name):
    found = [names for names, _ in ROWS for key in keys(name) if key in names]
    assert len(found) == 1, f"{name} is in {len(found)} rows"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][0])
def test_what_is_said_of_a_name_is_so(row):
    names, said = row
    for name in names:
        assert any(name in keys(theirs) for theirs in NAMES), f"optax has no {name}"
        if said.startswith(("same", "likewise")):
            assert here(name) is not None, f"{name} is not here"
        if said.startswith("not "):
            assert here(name) is None, f"{name} is here"


def test_what_is_named_in_its_place_exists():
    for _, said in ROWS:
        for word in re.findall(r"^`([\w.]+)`(?:, `([\w.]+)`)*", said):
            for name in filter(None, word):
                own = name.removeprefix("of.")
                assert here(own) is not None, f"{name} is not here"
