"""A small drawing of what an example prints, for the gallery: its numbers as lines, or as bars if they are few."""

import math
import re

OUTPUT = re.compile(r"^```text.*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
WIDTH, HEIGHT, MARGIN = 160, 90, 10
COLOURS = ["#3f51b5", "#e67e22", "#2e9e6b"]


def draw(page: str) -> str:
    """The picture of a page of the gallery, as SVG."""
    series = curves(page)
    return svg(lines(series) if series else bars(heights(page) or [1.0]))


def curves(page: str) -> list[list[float]]:
    """Columns of numbers behind a count that grows, from what the page prints first."""
    found = OUTPUT.search(page)
    rows = [[float(number) for number in NUMBER.findall(line)] for line in found[1].splitlines()] if found else []
    table: list[list[float]] = []
    for row in rows:
        if len(row) >= 2 and (not table or (len(row) == len(table[0]) and row[0] > table[-1][0])):
            table.append(row)
        elif len(table) >= 4:
            break
        elif len(row) >= 2:
            table = [row]
    return [list(column) for column in zip(*table, strict=True)][1:4] if len(table) >= 4 else []


def heights(page: str) -> list[float]:
    """The first decimal number of each line that the page prints; all of them if it is one line."""
    found = OUTPUT.search(page)
    rows = [re.findall(r"\d+\.\d+(?:e-?\d+)?", line) for line in found[1].splitlines()] if found else []
    rows = [row for row in rows if row]
    return [float(row[0]) for row in rows][:8] if len(rows) > 1 else [float(number) for row in rows for number in row]


def scaled(values: list[float], low: float, high: float) -> list[float]:
    """Heights in the picture; on a logarithmic axis where the values span much."""
    if low > 0 and high > 20 * low:
        values, low, high = [math.log(value) for value in values], math.log(low), math.log(high)
    span = (high - low) or 1.0
    return [HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - low) / span for value in values]


def lines(series: list[list[float]]) -> str:
    parts = []
    alike = max(map(max, series)) < 20 * max(min(map(max, series)), 1e-30)
    for values, colour in zip(series, COLOURS, strict=False):
        shown = series if alike else [values]
        places = scaled(values, min(map(min, shown)), max(map(max, shown)))
        step = (WIDTH - 2 * MARGIN) / (len(places) - 1)
        points = " ".join(f"{MARGIN + step * index:.1f},{place:.1f}" for index, place in enumerate(places))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
    return "".join(parts)


def bars(values: list[float]) -> str:
    low = min(values) / 2 if max(values) > 20 * min(values) > 0 else 0.0
    places, step = scaled(values, low, max(values)), (WIDTH - 2 * MARGIN) / len(values)
    return "".join(
        f'<rect x="{MARGIN + step * (index + 0.15):.1f}" y="{place:.1f}" width="{0.7 * step:.1f}" '
        f'height="{HEIGHT - MARGIN - place:.1f}" fill="{COLOURS[index % 3]}"/>'
        for index, place in enumerate(places)
    )


def svg(inner: str) -> str:
    axis = (
        f'<path d="M{MARGIN - 3} {MARGIN / 2}V{HEIGHT - MARGIN + 3}H{WIDTH - MARGIN / 2}" fill="none" stroke="#555"/>'
    )
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">{axis}{inner}</svg>\n'
