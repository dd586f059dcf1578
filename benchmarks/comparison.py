"""Compare what optax, JAX itself, SciPy and statsmodels have, and what they give at the edges.

Run: python benchmarks/comparison.py   (pip install optax scipy statsmodels)

It writes docs/comparison.md. A name in the table of features is looked up in its library, and every
number in the table of edges is computed; nothing is written by hand but the words around them.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxlogits as jl

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from _measure import table, versions  # noqa: E402

PACKAGES = ("jax", "optax", "scipy", "statsmodels")
LIBRARIES = ("jaxlogits", "optax", "JAX", "SciPy, statsmodels")

# The names of what does it: jaxlogits, optax, JAX, SciPy or statsmodels. None where nothing does.
FEATURES: dict[str, tuple[str | None, str | None, str | None, str | None]] = {
    "softmax, masked": ("softmax", None, "jax.nn.softmax", None),
    "softmax": ("softmax", None, "jax.nn.softmax", "scipy.special.softmax"),
    "cross entropy of class indices": (
        "softmax_cross_entropy_with_integer_labels",
        "optax.softmax_cross_entropy_with_integer_labels",
        None,
        None,
    ),
    "binary cross entropy": (
        "sigmoid_binary_cross_entropy",
        "optax.sigmoid_binary_cross_entropy",
        None,
        None,
    ),
    "focal loss, binary": ("sigmoid_focal_loss", "optax.sigmoid_focal_loss", None, None),
    "focal loss, many classes": ("softmax_focal_loss_with_integer_labels", None, None, None),
    "CTC loss": (None, "optax.ctc_loss", None, None),
    "ranking loss": (None, "optax.losses.ranking_softmax_loss", None, None),
    "hinge and triplet losses": (None, "optax.losses.hinge_loss", None, None),
    "KL divergence from logits": ("softmax_kl_divergence", None, None, None),
    "KL divergence from log probabilities": (
        None,
        "optax.losses.kl_divergence_with_log_targets",
        None,
        None,
    ),
    "Jensen-Shannon divergence": (
        "jensen_shannon_divergence",
        None,
        None,
        "scipy.spatial.distance.jensenshannon",
    ),
    "sparsemax": ("sparsemax", "optax.projections.projection_simplex", None, None),
    "entmax, for any alpha": ("entmax", None, None, None),
    "loss of a linear head without its logits": ("linear_softmax_cross_entropy", None, None, None),
    "any function of rows, in blocks": ("blockwise_map", None, "jax.lax.map", None),
    "top-k, top-p, min-p": ("keep_top_p", None, None, None),
    "speculative decoding": ("speculative_sample", None, None, None),
    "categorical draws": ("sample", None, "jax.random.categorical", None),
    "calibration error, temperature": ("fit_temperature", None, None, None),
    "conformal sets": ("conformal_set", None, None, None),
    "logistic regression": ("fit_logistic", None, None, "statsmodels.api.Logit"),
    "multinomial regression": ("fit_multinomial", None, None, "statsmodels.api.MNLogit"),
    "formulas, other families of GLM": (None, None, None, "statsmodels.api.GLM"),
    "mixed models": (None, None, None, "statsmodels.api.MixedLM"),
    "optimizers": (None, "optax.adam", None, "scipy.optimize.minimize"),
}

INF = np.inf


def integer_loss(library: Any) -> Callable[..., jax.Array]:
    """The same name in both libraries."""
    return library.softmax_cross_entropy_with_integer_labels


def from_log_softmax(logits: jax.Array, label: int) -> jax.Array:
    """How it is written with jax.nn alone."""
    return -jax.nn.log_softmax(logits)[label]


def integer_edge(logits: list[float], label: int, gradient: bool = False) -> Iterator[Any]:
    """The three ways to write the loss of a class index, called with one row."""
    z = jnp.array(logits, jnp.float32)
    for loss in (integer_loss(jl), integer_loss(optax), from_log_softmax):
        yield partial(jax.grad(loss) if gradient else loss, z, label)


def dense_edge(logits: list[float], targets: list[float]) -> Iterator[Any]:
    """The loss of target probabilities."""
    z, t = jnp.array(logits, jnp.float32), jnp.array(targets, jnp.float32)
    yield partial(jl.softmax_cross_entropy, z, t)
    yield partial(optax.softmax_cross_entropy, z, t)
    yield lambda: -(t * jax.nn.log_softmax(z)).sum()


def binary_edge(logit: float, label: float) -> Iterator[Any]:
    """The loss of yes or no."""
    x, y = jnp.array(logit, jnp.float32), jnp.array(label, jnp.float32)
    yield partial(jl.sigmoid_binary_cross_entropy, x, y)
    yield partial(optax.sigmoid_binary_cross_entropy, x, y)
    yield lambda: -y * jax.nn.log_sigmoid(x) - (1 - y) * jax.nn.log_sigmoid(-x)


def share_of_first(draw: Callable[..., jax.Array]) -> jax.Array:
    """How often the first of two equal logits of 1e7 is drawn."""
    return (draw(jax.random.key(0), jnp.full([2], 1e7), shape=(100_000,)) == 0).mean()


def edges() -> Iterator[tuple[str, str, Any, Any, Any]]:
    """A case, what is exact, and how to ask jaxlogits, optax and JAX."""
    yield "loss, right by a margin of 20", "4.12e-09", *integer_edge([20, 0, 0], 0)
    yield "its gradient at the label", "-4.12e-09", *integer_edge([20, 0, 0], 0, gradient=True)
    yield "loss, wrong by a margin of 200", "200", *integer_edge([-200, 0, -300], 0)
    yield "loss, label at the only +inf", "0", *integer_edge([INF, 0, 0], 0)
    yield "loss, label at -inf", "inf", *integer_edge([-INF, 0, 0], 0)
    yield "loss, -inf elsewhere", "0.693", *integer_edge([0, 0, -INF], 0)
    yield "loss, label -100", "NaN: no class", *integer_edge([2, 1, 0], -100)
    yield "loss, label -1", "NaN: no class", *integer_edge([2, 1, 0], -1)
    yield "dense loss, -inf where the target is 0", "0.693", *dense_edge([0, 0, -INF], [1, 0, 0])
    yield "binary loss, +inf and yes", "0", *binary_edge(INF, 1)
    yield "binary loss, 30 and yes", "9.36e-14", *binary_edge(30, 1)
    row = jnp.array([INF, 0.0])
    yield (
        "softmax of [inf, 0]",
        "[1 0]",
        partial(jl.softmax, row),
        None,
        partial(jax.nn.softmax, row),
    )
    nothing = jnp.full([2], -INF)
    by = (partial(jax.grad(fn), nothing) for fn in (jl.logsumexp, jax.nn.logsumexp))
    yield "gradient of logsumexp of [-inf, -inf]", "[0 0]", next(by), None, next(by)
    sure = jnp.array(20.0)
    by = (partial(jax.grad(fn), sure) for fn in (jl.sigmoid, jax.nn.sigmoid))
    yield "slope of the sigmoid at 20", "2.06e-09", next(by), None, next(by)
    by = (partial(share_of_first, fn) for fn in (jl.sample, jax.random.categorical))
    yield "first of two equal logits of 1e7, drawn", "0.5", next(by), None, next(by)


def show(value: Any) -> str:
    """Three digits; of three classes, the label's."""
    numbers = [f"{x:.3g}" for x in np.ravel(value) + 0.0]  # no -0
    return f"[{' '.join(numbers)}]" if len(numbers) == 2 else numbers[0]


def feature_rows() -> Iterator[list[str]]:
    """A row for each feature, whose names exist."""
    for feature, names in FEATURES.items():
        whole = (name and f"jaxlogits.{name}" if i == 0 else name for i, name in enumerate(names))
        yield [feature, *(f"`{found(name)}`" if name else "–" for name in whole)]


def found(name: str) -> str:
    """The name of something that is there; ours without the package."""
    module, attribute = name.rsplit(".", maxsplit=1)
    getattr(importlib.import_module(module), attribute)
    return name.removeprefix("jaxlogits.")


def edge_rows() -> Iterator[list[str]]:
    """A row for each edge."""
    for case, exact, *calls in edges():
        yield [case, exact, *("–" if call is None else show(call()) for call in calls)]


def page() -> str:
    """The document."""
    return (
        "\n\n".join(
            [
                "# Comparison with optax, JAX, SciPy and statsmodels",
                WHEN,
                "## What there is",
                "A dash says that there is no function for it, not that it can't be written.",
                table(["", *LIBRARIES], feature_rows()),
                "## What comes out at the edges",
                "In float32, on a CPU. For JAX the loss is written with `jax.nn.log_softmax` or "
                "`jax.nn.log_sigmoid`.",
                table(["case", "exact", "jaxlogits", "optax", "JAX"], edge_rows()),
                MORE,
                f"Measured with {versions(*PACKAGES)}, by `benchmarks/comparison.py`.",
            ]
        )
        + "\n"
    )


WHEN = """\
jaxlogits is about what comes after the last layer, and nothing else. Use it beside these libraries:
optax trains, statsmodels has the other models.

- **optax** is the better choice for CTC, ranking, metric-learning and regression losses, which
  aren't here, and it is installed wherever something is trained. Its losses of logits are fine as
  long as logits are moderate and finite.
- **`jax.nn`** needs no other package, and keeps the dtype of half-precision logits in reductions,
  where results here are float32.
- **statsmodels** has formulas, diagnostics, many other models, and years of use. What is here runs
  on accelerators, under `jit`, `vmap` and `grad`."""

MORE = """\
## Time, memory, accuracy and transforms

Each has a page or table of its own, also written by a script: [speed](speed.md),
[accuracy](accuracy.md), and [the linear head](../benchmarks/results/linear-head-cpu.md) beside
optax, jax-cce, tokamax and torch, with eleven transforms. All the differences in results and
arguments are in [Differences](differences.md)."""


if __name__ == "__main__":
    target = ROOT / "docs" / "comparison.md"
    target.write_text(page())
    print(target)
