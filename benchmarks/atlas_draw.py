"""The pictures and the table of the atlas."""

import re
from pathlib import Path

import matplotlib
from atlas_rules import FAMILIES
from matplotlib.figure import Figure

Losses = dict[str, dict[str, list[float | None]]]

TITLES = {
    "perceptron": "perceptron, digits",
    "convolutions": "convolutions, digits",
    "gpt": "GPT, characters",
    "regression": "ill-conditioned regression",
}
FLOOR = 1e-8  # of what is drawn: below it there is only rounding
CLOSE = {"gpt": 1.02}  # how near to its best loss a rate works as well; elsewhere it is a factor of 2
GREY = "#888888"  # readable on light and on dark pages
STYLES = ["-", "--"]


def near(task: str) -> float:
    return CLOSE.get(task, 2.0)


def best(values: list[float | None], rates: list[float]) -> tuple[float, float]:
    """The least loss, and the rate that it belongs to."""
    return min((max(value, FLOOR), rate) for value, rate in zip(values, rates, strict=True) if value is not None)


def span(task: str, values: list[float | None]) -> float:
    """Over how many decades of rates the loss is near the best, at steps of half a decade."""
    least = min(max(value, FLOOR) for value in values if value is not None)
    return sum(value is not None and value <= near(task) * least for value in values) / 2


def draw(losses: Losses, rates: list[float], start: dict[str, float], into: Path) -> None:
    """One picture for each family, with AdamW in each for comparison."""
    matplotlib.rcParams["svg.hashsalt"] = "atlas"  # the same file for the same numbers
    matplotlib.rcParams["svg.fonttype"] = "none"
    colors = [matplotlib.colormaps["tab10"](k) for k in (0, 1, 2, 3, 4, 5, 6, 8, 9)]
    into.mkdir(parents=True, exist_ok=True)
    for family, rules in FAMILIES.items():
        names = [name for name in rules if name in losses and name != "adamw"]
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        for axes, (task, title) in zip(figure.subplots(1, len(TITLES)), TITLES.items(), strict=True):
            top = (1.05 if task == "gpt" else 1.5) * start[task]
            drawn = [*enumerate(names), (-1, "adamw")]
            for k, name in drawn:
                if task not in losses.get(name, {}):
                    continue
                points = [(r, max(y, FLOOR)) for r, y in zip(rates, losses[name][task], strict=True) if y is not None]
                style = (
                    {"color": GREY, "linestyle": ":"}
                    if k < 0
                    else {"color": colors[k % 9], "linestyle": STYLES[k // 9]}
                )
                axes.plot(*zip(*points, strict=True), label=name, linewidth=2 if k < 0 else 1.4, **style)
            axes.set(xscale="log", yscale="linear" if task == "gpt" else "log", xlabel="learning rate")
            low = min(best(losses[n][task], rates)[0] for _, n in drawn if task in losses.get(n, {}))
            axes.set_ylim(0.97 * low if task == "gpt" else low / 1.3, top)
            axes.set_title(title, color=GREY, fontsize=10)
            axes.tick_params(which="both", colors=GREY, labelsize=8)
            axes.xaxis.label.set_color(GREY)
            axes.minorticks_off()
            axes.grid(color=GREY, alpha=0.25, linewidth=0.5)
            for spine in axes.spines.values():
                spine.set_color(GREY)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
        for text in legend.get_texts():
            text.set_color(GREY)
        figure.savefig(into / f"atlas-{slug(family)}.svg", transparent=True, metadata={"Date": None})


def slug(family: str) -> str:
    return re.sub(r"\W+", "-", family.lower()).strip("-")


def table(losses: Losses, rates: list[float]) -> str:
    """The least loss of each optimizer, the rate it takes, and over how many decades of rates it is near that."""
    lines = [f"| | {' | '.join(TITLES.values())} |", "|---" * (len(TITLES) + 1) + "|"]
    bests = {t: sorted(best(own[t], rates)[0] for own in losses.values() if t in own) for t in TITLES}
    for family, rules in FAMILIES.items():
        lines.append(f"| **{family}** |" + " |" * len(TITLES))
        for name in rules:
            if any(task not in losses.get(name, {}) for task in TITLES):
                continue
            cells = []
            for task in TITLES:
                loss, rate = best(losses[name][task], rates)
                shown = f"{loss:.3g}" if loss > FLOOR else "0"
                shown = f"**{shown}**" if loss <= bests[task][min(4, len(bests[task]) - 1)] else shown
                cells.append(f"{shown} at {rate:.2g}, {span(task, losses[name][task]):.1f}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(page: Path, found: str) -> None:
    """Put the table between the marks of the page."""
    text = re.sub(
        r"(<!-- table -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}\n{found}\n\n{m[2]}", page.read_text(), flags=re.S
    )
    page.write_text(text)
