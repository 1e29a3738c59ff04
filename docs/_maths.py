"""Typeset the plain maths of docstrings as MathML, when the site is built: no script, no font, no foreign host.

    mu <- b1 mu + (1 - b1) g
    update <- mu / (1 - b1^t),  t from 1

A name of one letter or of Greek is a symbol, with what follows `_` or a digit as its subscript; a longer name is
upright; `^` raises, ` / ` makes a fraction, `/` without spaces a slash, `|x|` a norm, `<x, y>` an inner product, `'` a
prime; `` `name` `` is a link. Words between are words. A line may break before `=`, `<-`, `+` and `-`, and after words.
"""

import html
import re
from collections.abc import Callable

_GREEK = "alpha beta gamma delta eps eta theta lam lambd mu nu pi rho sigma tau phi psi omega inf grad sum"
_QUANTITIES = """adam anchor average bad best bound cooldown count d decay diagonal ema epsilon fast factor growth h
keep last low lower lr mean momentum n optimism order peak period q rank rest root rule scale sd slow step T upper value
var wd"""
GREEK = dict(zip(_GREEK.split(), "αβγδεηθλλμνπρστφψω∞∇∑", strict=True))
# Longer names of quantities. Any other word is English, and ends a product.
QUANTITIES = set(_QUANTITIES.split())
OPERATORS = {"<-": "←", "->": "→", "<=": "≤", ">=": "≥", "+-": "±", "-": "−", "*": "⊙", "...": "…"}  # noqa: RUF001
TOKEN = re.compile(
    r"""(?P<code>`[^`]*`) | (?P<text>"[^"]*") | (?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)
    | (?P<name>[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*'*)
    | (?P<sign><-|->|<=|>=|\+-|\.\.\.|\S)""",
    re.VERBOSE,
)
RELATIONS = {"<-", "->", "<=", ">=", "<", ">", "=", "+-", "⊗", "×"}  # noqa: RUF001


class Token:
    def __init__(self, found: re.Match[str]) -> None:
        self.kind, self.text = str(found.lastgroup), found[0]
        before, after = found.string[: found.start()], found.string[found.end() :]
        self.loose, self.open = not before or before[-1].isspace(), bool(after) and not after[0].isspace()
        self.call = self.kind == "name" and after.startswith("(")

    @property
    def word(self) -> bool:
        """Whether it is English, not maths."""
        if self.kind in ("code", "text"):
            return True
        if self.kind != "name" or self.call:
            return False
        name = self.text.rstrip("'")
        short = len(name) == 1 or name in GREEK or name in QUANTITIES or re.fullmatch(r"[A-Za-z]+\d*(_\w+)+", name)
        return not (short or re.fullmatch(rf"([A-Za-z]|{'|'.join(GREEK)})\d+", name))


def tag(name: str, *inner: str, **attributes: str) -> str:
    return f"<{name}{''.join(f' {key}={value!r}' for key, value in attributes.items())}>{''.join(inner)}</{name}>"


def symbol(name: str) -> str:
    """A name with its subscripts and primes."""
    bare = name.rstrip("'")
    primes = "′" * (len(name) - len(bare))  # noqa: RUF001
    base, _, below = bare.partition("_")
    if (digits := re.fullmatch(r"([A-Za-z]+?)(\d+)", base)) and (len(digits[1]) == 1 or digits[1] in GREEK):
        base, below = (bare, "") if below else digits.groups()
    if len(base) > 1 and base not in GREEK and not (base in ("mean", "update", "state") and len(below) == 1):
        base, below = bare, ""
    if base == "sum":
        letter = tag("mo", "∑") if below else tag("mi", "sum")
    elif len(base) == 1 or base in GREEK:
        letter = tag("mi", GREEK.get(base, base))
    else:
        letter = tag("mtext", base)
    if below == "hat":
        letter, below = tag("mover", letter, tag("mo", "^")), ""
    if below:
        inner = tag("mi", GREEK.get(below, below)) if len(below) == 1 or below in GREEK else tag("mtext", below)
        letter = tag("msub", letter, inner)
    return tag("msup", letter, tag("mo", primes)) if primes else letter


def number(text: str) -> str:
    head, _, power = text.partition("e")
    if not power:
        return tag("mn", head)
    ten = tag("msup", tag("mn", "10"), tag("mn", power.replace("-", "−")))  # noqa: RUF001
    return ten if head == "1" else tag("mrow", tag("mn", head), tag("mo", "·"), ten)


class Line:
    """A parser of one line. Its rules return MathML."""

    def __init__(self, line: str) -> None:
        line = re.sub(r"(?<=\.\.\.) x | x (?=\.\.\.)", " ⊗ ", line)
        line = re.sub(r"\b([mn]) x ([mn])\b", r"\1 × \2", line)  # noqa: RUF001
        self.tokens, self.at = [Token(found) for found in TOKEN.finditer(line)], 0

    @property
    def now(self) -> Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def sees(self, *texts: str) -> bool:
        return self.now is not None and self.now.kind == "sign" and self.now.text in texts

    def take(self) -> Token:
        token = self.tokens[self.at]
        self.at += 1
        return token

    def top(self) -> str:
        """The line as text with formulas in it, so that it can break between them."""
        parts: list[str] = []
        formula: list[str] = []

        def close() -> None:
            if formula:
                parts.append(" " + tag("math", tag("mrow", *formula), displaystyle="true"))
                formula.clear()

        while (token := self.now) is not None:
            if self.is_word(token):
                close()
                parts.append((" " if token.loose else "") + words(self.take()))
            elif token.text in (",", ";", ":") or (token.text == "." and not token.loose):
                close()
                parts.append(self.take().text)
            elif token.text in RELATIONS and not self.opens_angle(token):
                close()
                formula.append(self.operator())
            elif token.text in (")", "/"):  # of what `is_long` has opened
                formula.append(self.operator())
            elif self.is_long():
                close()
                formula.append(symbol(self.take().text) if token.call else "")
                formula.append(self.operator(infix=False))
            elif token.text in "+-" and token.loose:
                close()
                formula.append(self.operator(infix=token.open is False))
            else:
                if formula and not formula[-1].startswith("<mo "):  # of a product that is broken here
                    close()
                formula.append(self.product(breaks=True))
        close()
        return "".join(parts).strip()

    def is_word(self, token: Token) -> bool:
        """English, or an article before English."""
        follows = self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else None
        long = follows is not None and follows.kind == "name" and follows.text.isalpha() and len(follows.text) > 1
        return token.word or (token.text == "a" and long and follows.text not in GREEK and not follows.call)

    def operator(self, infix: bool = True) -> str:
        text = self.take().text
        return tag("mo", html.escape(OPERATORS.get(text, text)), form="infix" if infix else "prefix")

    def opens_angle(self, token: Token) -> bool:
        rest = self.tokens[self.at + 1 :]
        return token.text == "<" and token.open and any(other.text == ">" and not other.loose for other in rest)

    def sequence(self, *ends: str) -> str:
        """Whatever stands between brackets, which are taken too."""
        parts: list[str] = []
        while (token := self.now) is not None:
            if token.kind == "sign" and token.text in ends and not (token.text in "|>" and token.loose):
                self.take()
                return "".join(parts)
            if self.is_word(token):
                parts.append(tag("mtext", ("&nbsp;" if parts and token.loose else "") + words(self.take()) + "&nbsp;"))
            elif token.text in (",", ";", ":", "."):
                parts.append(tag("mo", self.take().text, separator="true"))
            elif token.text in RELATIONS and not self.opens_angle(token):
                parts.append(self.operator())
            elif token.text in "+-":
                parts.append(self.operator(infix=bool(parts) and not parts[-1].endswith("</mo>")))
            elif token.text == "|" and token.loose and not token.open:
                parts.append(tag("mo", self.take().text, form="infix"))
            else:
                parts.append(self.product())
        raise ValueError(f"no {ends} in {' '.join(token.text for token in self.tokens)}")

    def is_long(self) -> bool:
        """Whether brackets begin here that are too long for a line, and stand over and under nothing."""
        start = self.at + (self.tokens[self.at].call and self.tokens[self.at].text != "sqrt")
        if start >= len(self.tokens) or self.tokens[start].text != "(":
            return False
        depth = 0
        for end, token in enumerate(self.tokens[start:], start):
            depth += (token.text == "(") - (token.text == ")")
            if depth == 0:
                after = self.tokens[end + 1 : end + 3]
                over_words = len(after) == 2 and after[0].text == "/" and after[1].word
                return end - start > 9 and (not after or over_words or after[0].text not in ("/", "^", "_", "["))
        return False

    def is_much(self, token: Token, factors: int, tokens: int) -> bool:
        """Whether a line may break before this factor."""
        return (factors > 2 and token.call) or (tokens > 7 and token.text == "(" and token.loose)

    def is_flat(self) -> bool:
        """Whether nothing is divided from here on."""
        return all(token.text != "/" for token in self.tokens[self.at :])

    def product(self, breaks: bool = False) -> str:
        """Factors side by side; ` / ` puts those since the last fraction over the next one."""
        done: list[str] = []
        begin = self.at
        upper: list[tuple[str, str]] = [self.factor()]
        while (token := self.now) is not None and not self.is_word(token):
            if token.kind == "sign" and token.text == "/":
                follows = self.tokens[self.at + 1]
                loose = token.loose
                self.take()
                after = self.tokens[self.at + 1 : self.at + 2]
                if follows.word or (after and after[0].text in ("of", "over")):
                    upper.append((tag("mo", "/"),) * 2)
                    break
                lower = self.factor()
                if loose:
                    over = upper[0][1] if len(upper) == 1 else spaced([whole for whole, _ in upper])
                    done.append(tag("mfrac", tag("mrow", over), tag("mrow", lower[1])))
                    upper = []
                else:
                    tight = upper.pop()[0] if upper else done.pop()
                    upper.append((tag("mrow", tight, tag("mo", "/"), lower[0]),) * 2)
            elif token.text in ("*", "·") or (token.text == "." and token.loose and not token.open):
                self.take()
                upper.append((tag("mo", "⊙" if token.text == "*" else "·"),) * 2)
            elif breaks and (self.is_long() or (self.is_flat() and self.is_much(token, len(upper), self.at - begin))):
                break
            elif self.begins_factor(token):
                upper.append(self.factor())
            else:
                break
        return tag("mrow", spaced([*done, *(whole for whole, _ in upper)]))

    def begins_factor(self, token: Token) -> bool:
        if token.kind != "sign":
            return True
        if token.text == "|":
            return token.loose and token.open
        return token.text in ("(", "[", "...") or self.opens_angle(token)

    def factor(self) -> tuple[str, str]:
        """An atom with its powers, indices and arguments: as it stands, and without its outermost brackets."""
        whole, bare = self.atom()
        while (token := self.now) is not None and token.kind == "sign" and not token.loose:
            if token.text == "^":
                self.take()
                whole = bare = tag("msup", tag("mrow", whole), tag("mrow", self.exponent()))
            elif token.text == "_":
                self.take()
                whole = bare = tag("msub", tag("mrow", whole), tag("mrow", self.exponent()))
            elif token.text in "([":
                self.take()
                end = ")" if token.text == "(" else "]"
                whole = bare = tag("mrow", whole, fenced(token.text, self.sequence(end), end))
            else:
                break
        return whole, bare

    def exponent(self) -> str:
        if self.sees("-"):
            return self.operator(infix=False) + self.atom()[1]
        return self.atom()[1]

    def atom(self) -> tuple[str, str]:
        token = self.take()
        if token.kind == "number":
            made = number(token.text)
        elif token.text == "sqrt" and self.sees("("):
            self.take()
            made = tag("msqrt", tag("mrow", self.sequence(")")))
        elif token.kind == "name":
            made = symbol(token.text)
        elif token.text in ("(", "[", "{"):
            inner = self.sequence(")", "]", "}")
            end = self.tokens[self.at - 1].text
            return fenced(token.text, inner, end), inner
        elif token.text == "|":
            made = fenced("|", self.sequence("|"), "|")
        elif token.text == "<":
            made = fenced("⟨", self.sequence(">"), "⟩")
        elif token.text == "-":
            made = tag("mrow", tag("mo", "−", form="prefix"), self.factor()[0])  # noqa: RUF001
        else:
            made = tag("mo", html.escape(OPERATORS.get(token.text, token.text)))
        return made, made


def fenced(left: str, inner: str, right: str) -> str:
    return tag("mrow", tag("mo", left, form="prefix"), tag("mrow", inner), tag("mo", right, form="postfix"))


def spaced(factors: list[str]) -> str:
    return tag("mspace", width="0.2em").join(factors)


def words(token: Token) -> str:
    if token.kind != "code":
        return html.escape(token.text)
    name = token.text.strip("`")
    code = f"<code>{html.escape(name)}</code>"
    return f'<autoref identifier="optimfn.{name}" optional>{code}</autoref>' if name.isidentifier() else code


def typeset(source: str) -> str:
    """Lines of maths as HTML. What is aligned by three spaces or more keeps a column of its own."""
    lines = []
    # A line that breaks within brackets goes on in the next.
    whole = re.sub(r"\([^()\n]*\n *[^()\n]*\)", lambda found: re.sub(r"\s*\n\s*", " ", found[0]), source)
    for line in filter(str.strip, whole.splitlines()):
        indent = len(line) - len(line.lstrip())
        cells = []
        for found in re.finditer(r"\S+(?: {1,2}\S+)*(?P<gap> {3,})?", line):
            width = f' style="min-width: {0.52 * (found.end() - found.start()):.1f}em"' if found["gap"] else ""
            cells.append(f"<span{width}>{Line(found[0]).top()}</span>")
        shift = f' style="margin-left: {min(0.45 * indent, 4.5):.1f}em"' if indent else ""
        lines.append(f"<div{shift}>{' '.join(cells)}</div>")
    return f'<div class="maths">{"".join(lines)}</div>'


def fence(source: str, language: str, css: str, options: dict, md: object, **kwargs: object) -> str:
    """For blocks fenced as `maths`."""
    return typeset(source)


FENCE: dict[str, str | Callable[..., str]] = {"name": "maths", "class": "maths", "format": fence}
