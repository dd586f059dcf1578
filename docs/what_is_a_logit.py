"""The figures of what-is-a-logit.md.

Run: python docs/what_is_a_logit.py

It writes docs/figures/logit-scale.png, logit-link.png and logit-classes.png.
"""

from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt

import jaxlogits as jl

FIGURES = Path(__file__).parent / "figures"
LINE, DOT, REST = "#30507a", "#c8442d", "#b8bec6"

# Bliss, The Calculation of the Dosage-Mortality Curve (1935): beetles after five hours of carbon
# disulphide, by the decimal logarithm of its concentration.
LOG_DOSE = jnp.array([1.6907, 1.7242, 1.7552, 1.7842, 1.8113, 1.8369, 1.8610, 1.8839])
KILLED = jnp.array([6, 13, 18, 28, 52, 53, 61, 60])
BEETLES = jnp.array([59, 60, 62, 56, 63, 59, 62, 60])


def save(figure: plt.Figure, name: str) -> None:
    """Save it without the lines that nothing is read from."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(color="#e6e8eb", linewidth=0.6)
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / name, dpi=160)
    plt.close(figure)


def draw_scale() -> None:
    """The sigmoid, and what 0.45, 0.55 and 0.9 are on the scale of logits."""
    figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    x = jnp.linspace(-6, 6, 400)
    axes.plot(x, jl.sigmoid(x), color=LINE, linewidth=2)
    axes.plot(x, 0.5 + x / 4, color=REST, linewidth=1, linestyle="--", label="0.5 + logit / 4")
    for p, place in ((0.45, (1.2, 0.3)), (0.55, (-3.2, 0.66)), (0.9, (3, 0.72))):
        logit = jl.logit(p)
        axes.scatter(logit, p, color=DOT, zorder=3)
        arrow = {"arrowstyle": "-", "color": REST}
        axes.annotate(f"{p:g} is {logit:+.1f}", (logit, p), place, arrowprops=arrow)
    axes.set(xlabel="logit", ylabel="probability", xlim=(-6, 6), ylim=(-0.03, 1.03))
    axes.legend(frameon=False, loc="lower right")
    save(figure, "logit-scale.png")


def draw_link() -> None:
    """The fit to the beetles on both scales."""
    features = jnp.stack([jnp.ones(8), LOG_DOSE - 1.8], axis=-1)
    fit = jl.fit_logistic(features, KILLED, trials=BEETLES)
    x = jnp.linspace(1.67, 1.9, 200)
    log_odds = fit.coefficients[0] + fit.coefficients[1] * (x - 1.8)
    share = KILLED / BEETLES
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(5.2, 6), layout="constrained", sharex=True)
    upper.plot(x, jl.sigmoid(log_odds), color=LINE)
    upper.scatter(LOG_DOSE, share, color=DOT, zorder=3)
    upper.set(ylabel="share killed", ylim=(-0.03, 1.03))
    lower.plot(x, log_odds, color=LINE)
    some = share < 1  # the logit of 1 is infinite
    lower.scatter(LOG_DOSE[some], jl.logit(share[some]), color=DOT, zorder=3)
    lower.set(xlabel="log dose", ylabel="its logit")
    save(figure, "logit-link.png")


def draw_classes() -> None:
    """Three classes on three scales."""
    logits = jnp.array([2.0, 1.0, 0.0])
    scales = {
        "logits\nz": logits,
        "probabilities\nsoftmax(z)": jl.softmax(logits),
        "log-odds\nlogit(softmax(z))": jl.class_log_odds(logits),
    }
    figure, axes = plt.subplots(1, 3, figsize=(5.2, 2.8), layout="constrained")
    for place, (title, values) in zip(axes, scales.items(), strict=True):
        bars = place.bar(["a", "b", "c"], values, color=LINE)
        place.bar_label(bars, fmt="%.2f", padding=2, fontsize=9)
        place.axhline(0, color=REST, linewidth=1)
        place.margins(y=0.15)
        place.set_title(title, fontsize=10)
    save(figure, "logit-classes.png")


if __name__ == "__main__":
    draw_scale()
    draw_link()
    draw_classes()
