"""The three figures of README: accuracy, memory and transforms.

Run: python docs/at_a_glance.py

It writes docs/figures/glance-accuracy.png, which it measures, and glance-memory.png and
glance-transforms.png from the tables of benchmarks/results/linear-head-cpu.md.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxlogits as jl

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
RESULTS = ROOT / "benchmarks" / "results" / "linear-head-cpu.md"
OURS, THEIRS, REST, INK = "#0072b2", "#d55e00", "#8a8f98", "#22272e"
PLAIN = "optax on hidden @ kernel"
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}

Loss = Callable[[jax.Array, jax.Array], jax.Array]
LOSSES: dict[str, Loss] = {
    "jaxlogits": jl.softmax_cross_entropy_with_integer_labels,
    "optax": optax.softmax_cross_entropy_with_integer_labels,
    "jax.nn": lambda logits, label: -jax.nn.log_softmax(logits)[label],
}


class Errors(NamedTuple):
    """The largest relative error at each margin, of the loss and of its gradient at the label."""

    loss: np.ndarray
    gradient: np.ndarray


def measure_accuracy(margins: np.ndarray, rows: int = 100) -> dict[str, Errors]:
    """Errors of 10 classes whose label is ahead of the others by about the margin."""
    others = np.random.default_rng(0).uniform(-1, 1, (rows, len(margins), 9)) - margins[:, None]
    label_first = np.concatenate([np.zeros((rows, len(margins), 1)), others], axis=-1)
    logits = label_first.astype(np.float32)
    odds_against = np.exp(logits[..., 1:].astype(np.float64)).sum(axis=-1)
    exact = np.log1p(odds_against), -odds_against / (1 + odds_against)
    found = {}
    for name, loss in LOSSES.items():
        both = jax.jit(jax.vmap(jax.vmap(jax.value_and_grad(lambda z, f=loss: f(z, jnp.int32(0))))))
        values, gradients = map(np.asarray, both(jnp.asarray(logits)))
        pairs = zip((values, gradients[..., 0]), exact, strict=True)
        found[name] = Errors(*(np.abs(got / want - 1).max(axis=0) for got, want in pairs))
    return found


def read_table(title: str) -> dict[str, dict[str, str]]:
    """A table of the results as rows of cells by the name of their column."""
    text = RESULTS.read_text()
    lines = re.search(rf"^## {title}.*?\n\n(.*?)(?:\n\n|\Z)", text, re.M | re.S)[1].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in lines)
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def save(figure: plt.Figure, path: Path) -> None:
    """On white, so that it can be read in a dark page as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, facecolor="white")
    plt.close(figure)


def draw_accuracy(path: Path) -> None:
    """How much of a loss and its gradient is wrong, from a sure mistake to a sure hit."""
    margins = np.linspace(-20, 60, 161)
    found = measure_accuracy(margins)
    figure, row = plt.subplots(2, 1, figsize=(5.2, 5.2), sharex=True, layout="constrained")
    styles = {"jax.nn": (REST, "-", 5), "optax": (THEIRS, "-", 2), "jaxlogits": (OURS, "-", 2.5)}
    for axes, quantity in zip(row, Errors._fields, strict=True):
        for name, (color, line, width) in styles.items():
            error = np.maximum(getattr(found[name], quantity), 1e-9)
            axes.plot(margins, error, line, color=color, linewidth=width, label=name)
        axes.set(yscale="log", ylim=(5e-9, 5), ylabel="relative error")
        axes.set_yticks([1e-8, 1e-6, 1e-4, 1e-2, 1], ["1e-8", "1e-6", "1e-4", "1 %", "all"])
        axes.grid(color="#e6e8eb", linewidth=0.6)
        axes.minorticks_off()
    row[0].set_title("The loss", loc="left", fontsize=11, fontweight="bold")
    row[1].set_title("Its gradient", loc="left", fontsize=11, fontweight="bold")
    row[1].set_xlabel("how far the label's logit is ahead of nine others")
    row[0].legend(frameon=False, loc="upper left")
    save(figure, path)


def draw_memory(path: Path) -> None:
    """Temporary memory over the number of rows."""
    table = read_table("Memory over rows")
    figure, axes = plt.subplots(figsize=(5.2, 4.4), layout="constrained")
    for name, cells in table.items():
        rows, sizes = [int(n) for n in cells], [float(size) for size in cells.values()]
        if name == "jaxlogits":
            style = {"color": OURS, "linewidth": 3, "marker": "o", "zorder": 3}
        elif name == PLAIN:
            style = {"color": THEIRS, "linewidth": 2.5, "marker": "s", "zorder": 2}
        else:
            style = {"color": REST, "linewidth": 1.2, "marker": ".", "zorder": 1}
        axes.plot(rows, sizes, **style)
    axes.set(xscale="log", yscale="log", ylim=(60, 6000), xlim=(900, 110000))
    axes.set_xticks(rows, [f"{n:,}" for n in rows], fontsize=10)
    axes.set_yticks([100, 1000], ["100 MiB", "1000 MiB"])
    axes.minorticks_off()
    for name, at, color in (
        (PLAIN, 1.35, THEIRS),
        ("tokamax xla", 0.85, REST),
        ("jax-cce", 1, REST),
        ("tokamax chunked_xla", 1.25, REST),
        ("checkpointed scan", 1.03, REST),
        ("jaxlogits", 0.75, OURS),
    ):
        size = float(table[name][str(rows[-1])])
        weight = "bold" if name == "jaxlogits" else "normal"
        text = name.removesuffix(" on hidden @ kernel")
        label = f"{text}, {size:.0f} MiB" if color != REST else text
        axes.annotate(
            label,
            (rows[-1] * 1.08, size * at),
            color=color,
            va="center",
            fontsize=10,
            weight=weight,
        )
    axes.set_xlabel("rows (tokens); 32,000 classes, 512 features, float32")
    axes.set_title("Temporary memory of loss and gradients", loc="left", fontsize=11)
    axes.grid(color="#e6e8eb", linewidth=0.6)
    save(figure, path)


def draw_transforms(path: Path) -> None:
    """Which transforms each implementation survives with the right result."""
    table = read_table("Transforms")
    names = ["jaxlogits", *(name for name in next(iter(table.values())) if name != "jaxlogits")]
    short = {PLAIN: "optax, not fused", "checkpointed scan": "scan with remat"}
    short |= {"tokamax chunked_xla": "tokamax, chunked", "tokamax xla": "tokamax, xla"}
    figure, axes = plt.subplots(figsize=(5.2, 4.8), layout="constrained")
    for y, (transform, cells) in enumerate(table.items()):
        for x, name in enumerate(names):
            survives = cells[name] == "yes"
            color = ("#cfe5f3" if name == "jaxlogits" else "#e8f1f7") if survives else "#f7d9c9"
            axes.add_patch(plt.Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, color=color))
            verdict = "✓" if survives else cells[name].split(" ")[0]
            axes.text(x, y, verdict, ha="center", va="center", color=INK if survives else "#8c3300")
        axes.text(-0.6, y, transform, ha="right", va="center", fontsize=10)
    for x, name in enumerate(names):
        weight = "bold" if name == "jaxlogits" else "normal"
        text = short.get(name, name)
        place = {"ha": "left", "va": "bottom", "rotation": 35, "rotation_mode": "anchor"}
        axes.text(x - 0.1, -0.7, text, fontsize=10, weight=weight, **place)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(table) - 0.5, -0.5))
    axes.set_axis_off()
    save(figure, path)


DRAWINGS = {"accuracy": draw_accuracy, "memory": draw_memory, "transforms": draw_transforms}


def main(folder: Path = FIGURES) -> None:
    """Write all of them."""
    with plt.rc_context(STYLE):
        for name, draw in DRAWINGS.items():
            draw(folder / f"glance-{name}.png")


if __name__ == "__main__":
    main()
