"""What the build of the site does beside mkdocs: maths, tables of names, links, sources, the version."""

import html
import itertools
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
import _thumbnails

ROOT = Path(__file__).parent.parent
VERSION = re.search(r'__version__ = "(.*?)"', (ROOT / "optimfn" / "_version.py").read_text())[1]
ENTRY = re.compile(r"^::: (optimfn[\w.]+)", re.MULTILINE)
PAPER = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")
PICTURE = re.compile(r"!\[[^\]]*\]\((images/[\w.]+)\)")
EXAMPLE = re.compile(r"^\| \[([^\]]+)\]\(([\w-]+)\.md\) \| (.*) \|$", re.MULTILINE)
DESCRIBED = re.compile(r'^```text title="Output"\n(transform +arguments.*?)^```$', re.MULTILINE | re.DOTALL)
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
        if file.src_uri.startswith("gallery/") and not PICTURE.search(file.content_string):
            uri = f"gallery/images/{file.name}.svg"
            files.append(File.generated(config, uri, content=_thumbnails.draw(file.content_string)))
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
    if uri == "gallery/index.md":
        return EXAMPLE.sub(card, markdown).replace("| example | what it shows |", "| | |")
    if uri == "changelog.md":
        return folded((ROOT / "CHANGELOG.md").read_text())
    markdown = DESCRIBED.sub(described, markdown)
    if uri == "api/index.md":
        return markdown + every_name()
    if uri.startswith("api/"):
        return with_table(markdown, uri)
    if uri in TABLES:
        return re.sub(r"^\|.*\|$", lambda row: linked(row[0], TABLES[uri]), markdown, flags=re.MULTILINE)
    return markdown


def folded(changelog):
    """The changelog with its subsections shut."""
    return re.sub(r"^### (.*)\n(?P<body>(?:(?!##).*\n)*)", shut, changelog + "\n", flags=re.MULTILINE)


def shut(found):
    return f"<details markdown>\n<summary>{found[1]}</summary>\n\n{found['body'].strip()}\n\n</details>\n\n"


def card(found):
    """A row of the gallery with the picture of its page, or a drawing of what it prints."""
    title, page, what = found.groups()
    picture = PICTURE.search((ROOT / "docs" / "gallery" / f"{page}.md").read_text())
    place = picture[1] if picture else f"images/{page}.svg"
    return f"| [![]({place}){{: .thumbnail }}]({page}.md) | **[{title}]({page}.md)**<br>{what} |"


def described(found):
    """What `describe` prints, as a table that wraps."""
    head, *lines = found[1].rstrip("\n").split("\n")
    start, ends = head.index("arguments"), [found.end() for found in re.finditer(r"state|read|written", head)]
    rows = []
    for text in lines:
        arguments, number = re.fullmatch(r"(.*?)(?: {2,}(\d\S* \w*B))?", text[start : ends[0]].rstrip()).groups()
        numbers = [number or "", *(text[a:b].strip() for a, b in itertools.pairwise(ends))]
        if name := text[:start].rstrip():
            rows.append([name, arguments.strip(), *numbers])
        else:
            rows[-1][1:] = [
                " ".join(filter(None, pair)) for pair in zip(rows[-1][1:], [arguments.strip(), *numbers], strict=True)
            ]
    body = "".join(
        f'<tr><td style="padding-left: {indent(name)}em">{html.escape(name.strip()).replace("_", "_<wbr>")}</td>'
        + "".join(f"<td>{html.escape('' if cell == '0 B' else cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    titles = "".join(f"<th>{title}</th>" for title in head.split())
    return f'<table class="describe"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>\n'


def indent(name):
    return 0.6 + 0.35 * (len(name) - len(name.lstrip()))


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
    """A row for a name, which may break behind its underscores."""
    name = re.sub(r"(?<=[a-z])([_.])", r"\1<wbr>", short(path))
    return f"| [<code>{name}</code>][{path}] | {names.summary(path)} |"


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
    first = 0 if cells[2].strip().startswith("same") else first
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
