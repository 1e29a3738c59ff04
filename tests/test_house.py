"""The house rules: layers, exports, documentation, ceilings, versions."""

import ast
import inspect
import re
import tokenize
from collections import Counter
from pathlib import Path

import pytest
from case import LAWS
from cases import CASES, SCHEDULES

import optimfn as of

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "optimfn"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A module imports from rooms below its own. Inside a room imports are free, as long as there is no cycle; the rooms
# of `fused` are in order too. CONTRIBUTING.md lists the same levels.
LEVELS = [
    ["_typing", "_version", "_torch", "_hints"],
    ["_checks"],
    ["_recipe"],
    ["tree"],
    ["_lazy"],
    ["_rows"],
    ["_assign", "_codes"],
    ["_codes_in_shards"],
    ["_quantize"],
    ["_arguments"],
    ["_gate", "_order"],
    ["_schedules", "_base", "_numerics", "_state_dict", "_state_spec"],
    ["_evaluation"],
    ["_transforms", "_wrappers"],
    ["_algorithms", "_in_place"],
    ["fused.ir"],
    ["fused.trace"],
    ["fused.plan"],
    ["fused.emit"],
    ["fused.run"],
    ["fused"],
    ["distributed"],
    ["_seeing"],
    ["optim"],
    ["cuda", "testing", "_states"],
]
LEVEL = {name: number for number, names in enumerate([*LEVELS, ["__init__"]]) for name in names}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_SUPPRESSIONS = 400, 60, 20


def parse(path):
    return ast.parse(path.read_text())


def module_name(path):
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts)


def imports(path):
    """`(node, absolute module)` for every import in a file."""
    package = ["optimfn", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield node, node.module
                continue
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                inner = [*base, alias.name]
                is_module = (PACKAGE.parent / "/".join(inner)).with_suffix(".py").exists()
                is_package = (PACKAGE.parent / "/".join(inner) / "__init__.py").exists()
                yield node, ".".join(inner if is_module or is_package else base)


def room(module):
    first, second = (module.removeprefix("optimfn").lstrip(".") + "..").split(".")[:2]
    return f"{first}.{second}" if f"{first}.{second}" in LEVEL else first or "__init__"


every_module = pytest.mark.parametrize("path", MODULES, ids=module_name)


@every_module
def test_imports_point_down(path):
    own = room("optimfn." + module_name(path))
    assert own in LEVEL, f"say in LEVELS where {own} belongs"
    for _, module in imports(path):
        if module.startswith("optimfn") and room(module) != own:
            assert LEVEL[room(module)] < LEVEL[own], f"{own} may not import {module}"


def test_contributing_lists_the_same_levels():
    text = re.search(r"\*\*Layers\.\*\*.*?only: (.*?)\. No", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    listed = [re.findall(r"`([\w.]+)`", level) for level in text.split(";")]
    assert listed == LEVELS, "make **Layers.** of CONTRIBUTING.md and LEVELS of tests/test_house.py the same"


def test_there_are_no_import_cycles():
    graph = {}
    for path in MODULES:
        name = module_name(path).removesuffix("__init__").rstrip(".")
        graph[name] = {module.removeprefix("optimfn").lstrip(".") for _, module in imports(path) if "optimfn" in module}
    done, active = set(), []

    def visit(name):
        assert name not in active, f"import cycle: {' -> '.join([*active[active.index(name) :], name])}"
        if name in done:
            return
        active.append(name)
        for other in graph.get(name, ()):
            if other in graph and other != "":
                visit(other)
        active.pop()
        done.add(name)

    for name in graph:
        visit(name)


@every_module
def test_imports_stand_at_the_top_without_stars(path):
    tree = parse(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert node in tree.body, f"line {node.lineno}: an import inside a function or block"
            assert all(alias.name != "*" for alias in node.names), f"line {node.lineno}: name what is imported, not *"


@every_module
def test_only_one_room_knows_each_outside_package(path):
    allowed = {"optree": "tree", "torch.optim": "optim", "numpy": None}
    for _, module in imports(path):
        for outside, home in allowed.items():
            if module == outside or module.startswith(outside + "."):
                assert room("optimfn." + module_name(path)) == home, f"{module}: only {home or 'nobody'} imports it"


@every_module
def test_only_one_module_knows_private_names_and_versions_of_torch(path):
    if module_name(path) == "_torch":
        return
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.partition(".")[0] == "torch":
            used = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            used = [alias.name for alias in node.names]
        else:
            used = [ast.unparse(node)] if isinstance(node, ast.Attribute) else []
        for name in used:
            private = re.search(r"^(torch|forward_ad)\b(.*\._[a-zA-Z]|\.version\b|\.__version__)", name)
            assert not private, f"line {node.lineno}: {name} belongs to _torch"


@every_module
def test_files_and_functions_are_short(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= MAX_FILE_LINES, f"{path.name} has {len(lines)} lines, of {MAX_FILE_LINES}: split it by subject"
    with path.open("rb") as file:
        skip = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)
        tokens = [t for t in tokenize.tokenize(file.readline) if t.type not in skip]
    code = {n for t in tokens if not t.string.startswith(('"""', 'r"""')) for n in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef):
            size = sum(node.lineno <= n <= node.end_lineno for n in code)
            assert size <= MAX_FUNCTION_LINES, f"{node.name} has {size} lines of code, of {MAX_FUNCTION_LINES}"


def test_suppressions_are_few_and_explained():
    found = []
    for path in [*MODULES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "examples").rglob("*.py"))]:
        if path.name == "test_house.py":
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            match = re.search(r"#\s*(type: ignore(\[[\w-]+\])?|noqa(: \w+)?|pragma: no cover)(.*)", line)
            if match:
                found.append(path)
                assert match[4].strip(" -#"), f"{path.name}:{number}: say why"
    assert len(found) <= MAX_SUPPRESSIONS, f"one suppression too many among these: {[path.name for path in found]}"


def exported(path):
    """The names that an `__init__` re-exports as `x as x`, submodules left out."""
    for node in parse(path).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name, f"{path}: re-export {alias.name} as itself"
                if node.module is not None:
                    yield alias.name


PUBLIC = sorted(set(exported(PACKAGE / "__init__.py")) - {"__version__"})
TREE = sorted(exported(PACKAGE / "tree" / "__init__.py"))


def test_nothing_public_is_unexported():
    for name in vars(of):
        is_room = inspect.ismodule(vars(of)[name])
        assert name.startswith("_") or is_room or name in PUBLIC, f"{name} is public but not re-exported"


def test_inits_only_reexport():
    for path in PACKAGE.rglob("__init__.py"):
        for node in parse(path).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            fits = docstring or isinstance(node, ast.ImportFrom)
            assert fits, f"{path}, line {node.lineno}: an __init__ only re-exports; move this to a module"


def api_pages():
    return "\n".join(page.read_text() for page in (ROOT / "docs" / "api").rglob("*.md"))


@pytest.mark.parametrize("name", [f"optimfn.{n}" for n in PUBLIC] + [f"optimfn.tree.{n}" for n in TREE])
def test_every_public_name_is_documented(name):
    found = re.search(rf"^\s*:::\s+{re.escape(name)}\s*$", api_pages(), re.MULTILINE)
    assert found, f"no page has it: write a line `::: {name}` into the page of its family in docs/api"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_in_the_changelog(name):
    found = f"`{name}`" in (ROOT / "CHANGELOG.md").read_text()
    assert found, f"name it in backticks under [Unreleased], Added, of CHANGELOG.md: `{name}`"


def factories(returns):
    for name in PUBLIC:
        value = getattr(of, name)
        is_factory = inspect.isfunction(value) and hasattr(value, "__wrapped__")
        if is_factory and inspect.signature(value).return_annotation == returns:
            yield name


@pytest.mark.parametrize("name", list(factories(of.GradientTransformation)))
def test_every_transformation_has_a_case(name):
    found = any(case.make.__name__ == name or name in case.covers for case in CASES)
    assert found, f"write a case for it into tests/cases/FAMILY.py: Case({name!r}, of.{name}, {{...}}, oracle=...)"


@pytest.mark.parametrize("name", list(factories(of.ScheduleFn)))
def test_every_schedule_has_a_case(name):
    found = any(case.make.__name__ == name or name in case.covers for case in SCHEDULES)
    assert found, f"write a case for it into tests/cases/schedules.py: ScheduleCase({name!r}, of.{name}, {{...}}, ...)"


def test_every_exemption_has_a_reason_and_every_case_a_name_of_its_own():
    for case in CASES:
        for law, reason in case.skips.items():
            assert law in LAWS, f"{case.name} skips {law!r}, which is no key of LAWS in tests/case.py: {sorted(LAWS)}"
            assert len(reason) > 10, f"{case.name} skips {law!r}: say why, in a sentence"
    twice = [name for name, count in Counter(case.name for case in CASES).items() if count > 1]
    assert not twice, f"several cases are called {twice}"


SECTIONS = {
    "transformation": ("Shapes:", "Example:"),
    "schedule": ("Args:", "Raises:", "Example:"),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "transformation") for name in factories(of.GradientTransformation)]
    + [(name, "schedule") for name in factories(of.ScheduleFn)],
)
def test_docstrings_have_their_sections(name, kind):
    value = getattr(of, name)
    doc = inspect.getdoc(value)
    needed = [*SECTIONS[kind]]
    arguments = [p for p in inspect.signature(value).parameters.values() if p.kind is not p.VAR_POSITIONAL]
    if kind == "transformation" and arguments:
        needed += ["Args:", "Raises:"]
    for section in needed:
        assert re.search(rf"^{section}", doc, re.MULTILINE), f"{name} lacks {section}"
    for parameter in arguments:
        assert re.search(rf"^\s+{parameter.name}: ", doc, re.MULTILINE), f"{name} does not document {parameter.name}"


def test_the_version_is_that_of_the_changelog():
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest, "the changelog has no section of a version: ## [1.2.3]"
    assert newest[1] == of.__version__, "optimfn/_version.py and the newest section of CHANGELOG.md differ"


def test_adam_reads_in_a_sitting():
    """From `scale_by_adam` to the last verb it calls: under 120 lines of code."""
    seen, lines = set(), 0
    queue = [of.scale_by_adam.__wrapped__]
    while queue:
        function = queue.pop()
        if function in seen:
            continue
        seen.add(function)
        source = inspect.getsource(function)
        tree = ast.parse(inspect.cleandoc(source) if source.startswith(" ") else source)
        docs = [n for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
        hidden = {line for doc in docs for line in range(doc.lineno, doc.end_lineno + 1)}
        lines += sum(
            bool(text.strip()) and not text.strip().startswith("#") and number not in hidden
            for number, text in enumerate(source.splitlines(), start=1)
        )
        scope = vars(inspect.getmodule(function))
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                value = scope.get(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tree":
                value = getattr(of.tree, node.attr, None)
            else:
                continue
            value = inspect.unwrap(value) if callable(value) else value
            if inspect.isfunction(value) and value.__module__.startswith("optimfn.tree"):
                queue.append(value)
    assert lines < 120, f"scale_by_adam and the verbs below it have {lines} lines of code"
