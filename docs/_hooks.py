"""What the build of the site does beside mkdocs: maths, tables of names, links, sources, the version."""

import html
import re
import sys
from pathlib import Path
from posixpath import relpath

import griffe
from mkdocs.structure.files import File, InclusionLevel
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

sys.path.insert(0, str(Path(__file__).parent))

import _maths

ROOT = Path(__file__).parent.parent
VERSION = re.search(r'"(.*?)"', (ROOT / "optimfn" / "_version.py").read_text())[1]
ENTRY = re.compile(r"^::: (optimfn[\w.]+)", re.MULTILINE)
PAPER = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")
SOURCE = re.compile(r'href="source:([^"]+)"')
# Pages whose tables name what is here in their second column, or in the first.
TABLES = {"coming-from-optax.md": 1, "coming-from-torch.md": 1, "names-elsewhere.md": 1, "cheat-sheet.md": 1}
TABLES |= {"guides/which-optimizer.md": 0, "atlas.md": 0}


class Names:
    """What each public name is, read from the sources without running them."""

    def __init__(self):
        self.package = griffe.load("optimfn", search_paths=[str(ROOT)])
        self.public = {name for name, member in self.package.members.items() if member.is_alias}
        self.verbs = {name for name, member in self.package["tree"].members.items() if member.is_alias}
        self.classes = {name for name, member in self.package["optim"].members.items() if member.is_alias}

    def path(self, code):
        """The name that a piece of code begins with, if it is one of ours."""
        found = re.match(r"(?:@?of\.)?([A-Za-z_][\w.]*)", code)
        name = found[1] if found else ""
        if name.startswith("tree."):
            return f"optimfn.{name}" if name[5:] in self.verbs else None
        if name.startswith("optim."):
            return f"optimfn.{name}" if name[6:] in self.classes else None
        return f"optimfn.{name}" if name in self.public else None

    def summary(self, path):
        obj = self.package[path.removeprefix("optimfn.")]
        text = obj.docstring.value.partition("\n\n")[0] if obj.docstring else ""
        return " ".join(text.split()).replace("|", "\\|")

    def is_plain(self, path):
        """Whether it is a state or another record, which needs no row of its own."""
        return self.package[path.removeprefix("optimfn.")].is_class and path.endswith(("State", "Factors", "Node"))


names = None
entries = {}


def on_config(config):
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    if _maths.FENCE not in fences:
        fences.append(_maths.FENCE)
    config.copyright = f"optimfn {VERSION}. {config.copyright}"
    return config


def on_files(files, config):
    global names
    names = Names()
    entries.clear()
    for file in files.documentation_pages():
        if file.src_uri.startswith("api/"):
            entries[file.src_uri] = ENTRY.findall(file.content_string)
    for path in sorted((ROOT / "optimfn").rglob("*.py")):
        uri = path.relative_to(ROOT).as_posix()
        front = "---\nsearch:\n  exclude: true\nhide: [navigation, toc]\n---\n"
        page = File.generated(
            config, f"source/{uri}.md", content=f"{front}# {uri}\n", inclusion=InclusionLevel.NOT_IN_NAV
        )
        files.append(page)
    return files


def on_page_markdown(markdown, page, config, files):
    uri = page.file.src_uri
    markdown = PAPER.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", markdown)
    if uri == "api/index.md":
        return markdown + every_name()
    if uri.startswith("api/"):
        return with_table(markdown, uri)
    if uri in TABLES:
        return re.sub(r"^\|.*\|$", lambda row: linked(row[0], TABLES[uri]), markdown, flags=re.MULTILINE)
    return markdown


def with_table(markdown, uri):
    """A page of the API with a table of what stands on it, and below it if it is the first of its folder."""
    rows = [row(path) for path in entries[uri] if not names.is_plain(path)]
    table = "\n".join(["| name | what it does |", "|---|---|", *rows]) if rows else ""
    if records := [f"[`{short(path)}`][{path}]" for path in entries[uri] if names.is_plain(path)]:
        table += f"\n\nStates: {', '.join(records)}."
    folder = uri.removesuffix("index.md")
    if uri.endswith("/index.md") and (
        others := [other for other in entries if other.startswith(folder) and other != uri]
    ):
        table += "\n\n" + "\n".join(["| on other pages | |", "|---|---|", *(line(other, folder) for other in others)])
    first = re.search(r"^(:::|##) ", markdown, re.MULTILINE)
    place = first.start() if first else len(markdown)
    return f"{markdown[:place]}\n\n{table}\n\n{markdown[place:]}"


def short(path):
    return path.removeprefix("optimfn.")


def row(path):
    return f"| [`{short(path)}`][{path}] | {names.summary(path)} |"


def line(uri, folder):
    """A row for another page of the folder: its title and its names."""
    title = (ROOT / "docs" / uri).read_text().partition("\n")[0].lstrip("# ")
    there = ", ".join(f"[`{short(path)}`][{path}]" for path in entries[uri] if not names.is_plain(path))
    return f"| [{title}]({uri.removeprefix(folder)}) | {there} |"


def every_name():
    """All public names in the order of the alphabet."""
    paths = sorted({path for there in entries.values() for path in there}, key=lambda path: short(path).lower())
    return "\n\n" + ", ".join(f"[`{short(path)}`][{path}]" for path in paths) + "\n{: .index }\n"


def linked(row, first):
    """A row of a table whose names in code, from one column on, are links."""
    cells = re.split(r"(?<!\\)\|", row)
    for number in range(1 + first, len(cells) - 1):
        cells[number] = re.sub(r"(?<!\[)`([^`]+)`(?!\])", link, cells[number])
    return "|".join(cells)


def link(found):
    path = names.path(found[1])
    return f"[{found[0]}][{path}]" if path else found[0]


def on_page_content(content, page, config, files):
    uri = page.file.src_uri
    if uri.startswith("source/"):
        code = (ROOT / uri.removeprefix("source/").removesuffix(".md")).read_text()
        form = HtmlFormatter(linenos="inline", lineanchors="L", cssclass="highlight source", wrapcode=True)
        return content + highlight(code, PythonLexer(), form)

    def there(found):
        path, _, number = found[1].partition("#")
        return f'href="{html.escape(relpath(f"source/{path}", page.url or "."))}/#L-{number}"'

    return SOURCE.sub(there, content)


def on_post_page(output, page, config):
    name = r'(<div class="md-header__topic">\s*<span class="md-ellipsis">\s*optimfn)\s'
    return re.sub(name, rf'\1 <small class="version">{VERSION}</small> ', output, count=1)
