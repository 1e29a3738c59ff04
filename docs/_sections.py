"""Turn the house sections of a docstring into Markdown before the Google parser sees them.

The Google parser of griffe knows `Args`, `Returns` and `Raises`. It would make boxes of the sections
that are our own, and lose their line breaks. Here `Maths` is typeset, `Example` a
console session, `Shapes` a list with one line an item, and `Differs from` and `Source` a paragraph.
The fields of a named tuple become one list, described by the comments behind them. A public name in
backticks becomes a link. Since models have parameters too, those of a function are called arguments.
"""

import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent.parent))

import optimfn

_PAPER = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")

_SECTION = re.compile(r"^(Maths|Shapes|Differs from|Source|Example):(.*)\n((?:(?:    .*)?\n)*)", re.MULTILINE)
_FENCE = re.compile(r"(```.*?```)", re.DOTALL)
_NAME = re.compile(r"`([\w.]+)`")


class HouseSections(griffe.Extension):
    """The extension that mkdocs.yml loads."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        verbs = {name: f"optimfn.tree.{name}" for name, member in pkg["tree"].members.items() if member.is_alias}
        names = {name: f"optimfn.{name}" for name, member in pkg.members.items() if member.is_alias}
        names |= {f"tree.{name}": path for name, path in verbs.items()}
        for member in list(pkg["optim"].members.values()):
            if member.is_alias and any(
                str(base).startswith("torch.optim.") for base in getattr(member.final_target, "bases", ())
            ):
                _show_class(member.final_target, pkg, names)
        for module in pkg.modules.values():
            _dress(module, names | verbs if module.name == "tree" else names)


def _show_class(cls: griffe.Class, pkg: griffe.Module, names: dict[str, str]) -> None:
    """Give a drop-in class, whose constructor is torch's, its signature, and the equations of its pure rule."""
    signature = inspect.signature(getattr(optimfn.optim, cls.name))
    bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    text = f"{cls.docstring.value}\n\n```python\n{cls.name}{inspect.Signature(bare)}\n```\n"
    rule = next(owner for owner in [cls, *cls.resolved_bases] if re.search("the rules? ", owner.docstring.value))
    for name in _NAME.findall(rule.docstring.value):
        if name in names and (maths := re.search(_SECTION.pattern, pkg[name].docstring.value + "\n", re.MULTILINE)):
            text += f"\n`{name}`, given the gradient g:\n\nMaths:\n{maths[3]}\n" if maths[1] == "Maths" else ""
    cls.docstring.value = text


def _dress(obj: griffe.Object, links: dict[str, str]) -> None:
    for member in [member for member in obj.members.values() if not member.is_alias]:
        _dress(member, {} if obj.is_class else links)
    if obj.docstring is None:
        return
    text = _SECTION.sub(_section, obj.docstring.value + "\n").rstrip()
    text = re.sub(r"^Args:$", "Args: Arguments:", text, flags=re.MULTILINE)
    if obj.is_class and "NamedTuple" in [str(base) for base in obj.bases]:
        text += _fields(obj)
    own = {obj.name}
    for parameter in obj.parameters if obj.is_function else []:
        own.add(parameter.name)
        if parameter.kind in (griffe.ParameterKind.var_positional, griffe.ParameterKind.var_keyword):
            parameter.default = None
    links = {name: path for name, path in links.items() if name not in own}
    parts = [part if part.startswith("```") else _link(part, links) for part in _FENCE.split(text)]
    place = f"{obj.relative_package_filepath}#{obj.lineno}"
    text = _PAPER.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", "".join(parts))
    obj.docstring.value = f'{text}\n\n<a class="doc-source" href="source:{place}">source</a>'


def _section(found: re.Match[str]) -> str:
    name, first, rest = found.group(1), found.group(2).strip(), textwrap.dedent(found.group(3)).strip("\n")
    title = f'<span class="doc-section-title">{name}:</span>'
    if name in ("Differs from", "Source"):
        return f"{title} {' '.join([first, *rest.split()])}\n\n"
    if name == "Shapes":
        items = re.sub(r"\n(?! )", "\n- ", rest)
        return f"{title}\n\n- {items}\n\n"
    if name == "Maths":
        return f"```maths\n{rest}\n```\n\n"
    return f"{title}\n\n```pycon\n{rest}\n```\n\n"


def _fields(obj: griffe.Object) -> str:
    lines = []
    for name, field in list(obj.members.items()):
        if field.is_attribute:
            comment = field.source.partition("#")[2].strip()
            annotation = str(field.annotation).replace("Count", "Tensor")
            lines.append(f"    {name} ({annotation}): {comment}")
            obj.del_member(name)
    return "\n\nAttributes: Fields:\n" + "\n".join(lines) if lines else ""


def _link(text: str, links: dict[str, str]) -> str:
    def link(found: re.Match[str]) -> str:
        name = found.group(1)
        return f"[`{name}`][{links[name]}]" if name in links else found.group(0)

    return _NAME.sub(link, text)
