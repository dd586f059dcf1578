"""The figure of speed.md, from the table of benchmarks/results/cross-entropy-cpu.md.

Run: python docs/speed.py

It writes docs/figures/cross_entropy.png.
"""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cross-entropy-cpu.md"
COLORS = {"float32": "#0072b2", "bfloat16": "#d55e00"}
TITLES = {"forward": "The losses", "mean": "Their mean", "value and gradient": "Mean and gradient"}
ROW = re.compile(
    r"^\| \[(\d+),(\d+)\] \| (\w+) \| ([\w ]+) \|[^|]+\| ([\d.]+) \(([\d.]+)-([\d.]+)\)", re.M
)


def read_ratios() -> dict[tuple[str, str], dict[str, tuple[float, float, float]]]:
    """Median and quartiles of the time over optax's, by kind and dtype, then by shape."""
    found: dict[tuple[str, str], dict[str, tuple[float, float, float]]] = {}
    for rows, classes, dtype, kind, *numbers in ROW.findall(RESULTS.read_text()):
        median, low, high = map(float, numbers)
        shape = f"{int(rows):,} × {int(classes):,}"
        found.setdefault((kind, dtype), {})[shape] = median, low, high
    return found


def draw(path: Path) -> None:
    """Bars of the ratios with their quartiles; 1 is a tie."""
    found = read_ratios()
    figure, panels = plt.subplots(3, 1, figsize=(5.2, 8), layout="constrained", sharex=True)
    for axes, (kind, title) in zip(panels, TITLES.items(), strict=True):
        for offset, (dtype, color) in zip((0.2, -0.2), COLORS.items(), strict=True):
            shapes = found[kind, dtype]
            median, low, high = np.array(list(shapes.values())).T
            places = np.arange(len(shapes))[::-1] + offset
            spread = [median - low, high - median]
            style = {"color": color, "label": dtype, "error_kw": {"lw": 0.8}}
            axes.barh(places, median, 0.38, xerr=spread, **style)
        axes.set_yticks(range(len(shapes)), list(shapes)[::-1])
        axes.axvline(1, color="#22272e", linewidth=0.8)
        axes.set_title(title, loc="left", fontsize=11)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("rows × classes")
    panels[0].legend(frameon=False, loc="lower right")
    panels[-1].set_xlabel("time relative to optax; less is faster")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)


if __name__ == "__main__":
    draw(ROOT / "docs" / "figures" / "cross_entropy.png")
