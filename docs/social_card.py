"""The picture that a link to the site shows in a chat or on a social network.

Run: python docs/social_card.py

It writes docs/_site/static/card.png, 1200 by 630 pixels. The numbers on it are computed when it is
drawn.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import jaxlogits as jl

CARD = Path(__file__).parent / "_site" / "static" / "card.png"
BLUE, ORANGE, INK, GREY = "#0072b2", "#d55e00", "#22272e", "#6a7079"
LOGITS, LABEL = jnp.array([20.0, 0.0, 0.0]), 0


def draw(path: Path) -> None:
    """Words on the left, the sigmoid behind them, and one loss in two libraries."""
    figure = plt.figure(figsize=(12, 6.3), facecolor="white")
    curve = figure.add_axes((0, 0, 1, 1), xlim=(-6, 6), ylim=(-0.15, 1.15))
    curve.axis("off")
    x = jnp.linspace(-6, 6, 400)
    curve.plot(x, jl.sigmoid(x), color=BLUE, linewidth=60, alpha=0.08, solid_capstyle="butt")

    def say(y: float, text: str, size: float, color: str = INK, **style: str) -> None:
        figure.text(0.07, y, text, fontsize=size, color=color, **style)

    say(0.8, "jaxlogits", 62, BLUE, weight="bold")
    say(0.58, "Losses, softmax, sampling, calibration\nand regression for JAX", 29, linespacing=1.3)
    say(0.44, "Logits of 20, 0, 0 and a label of 0: the loss", 22, GREY)
    for y, library, color in ((0.34, optax, ORANGE), (0.25, jl, BLUE)):
        loss = jax.jit(library.softmax_cross_entropy_with_integer_labels)(LOGITS, LABEL)
        say(y, f"{library.__name__:>9}  {float(loss):.3g}", 29, color, family="monospace")
    say(0.09, "Accurate · small in memory · every JAX transform", 24)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(CARD)
    print(CARD)
