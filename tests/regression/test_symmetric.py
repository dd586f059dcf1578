"""Derivatives of fits where log-odds are exactly 0, which those of as many 0 as 1 labels are."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlogits as jl
from jaxlogits._src.regression.likelihood import binary_terms

ONES = np.ones(6)
LABELS = np.array([0.0, 1, 0, 1, 1, 0])
SHARES = np.array([0.3, 0.7, 0.5, 0.5, 0.2, 0.8])
EVEN = np.array([[1.0, -1], [1, -1], [1, 1], [1, 1], [1, 0], [1, 0]])
NOTHING_FIRST = np.concatenate([np.zeros([1, 2]), EVEN[1:]])  # and so no intercept
NINE = np.array([[1.0, i // 3 - 1] for i in range(9)])  # each with each of three classes
TIED = np.array(
    [[0.0] * 3, [1, 1, 0], [0, 2, 2], [0, 0, 1], [1, 0, 0], [0] * 3, [1, 0, 1], [0, 2, 0]]
)
CLASSES = np.array([0, 1, 2, 2, 0, 1, 0, 2])
BOTH = np.array([0.0, 0, 1, -1, -1, 1])

Fit = Callable[..., Any]


def logistic(labels: np.ndarray, **options: Any) -> Fit:
    def fit(x: Any, w: Any, offset: Any) -> Any:
        return jl.fit_logistic(x, labels, weights=w, offset=offset, **options)

    return fit


FITS: dict[str, tuple[Fit, tuple[np.ndarray, ...]]] = {
    "labels": (logistic(LABELS), (EVEN, ONES, 0 * ONES)),
    "shares": (logistic(SHARES), (EVEN, ONES, 0 * ONES)),
    "a row of zeros": (logistic(SHARES), (NOTHING_FIRST, ONES, 0 * ONES)),
    "intercept": (logistic(LABELS), (EVEN[:, :1], ONES, 0 * ONES)),
    "counts": (logistic(2 * LABELS + 1, trials=4 * ONES), (EVEN, ONES, 0 * ONES)),
    "firth": (logistic(LABELS, firth=True), (EVEN, ONES, 0 * ONES)),
    "firth, no intercept": (
        logistic(SHARES, firth=True),
        (NOTHING_FIRST, ONES, 0 * ONES),
    ),
    "classes": (
        lambda x, w: jl.fit_multinomial(x, np.arange(9) % 3, 3, weights=w),
        (NINE, np.ones(9)),
    ),
    "temperature": (lambda z, w: jl.fit_temperature(z, CLASSES, weights=w), (TIED, np.ones(8))),
    "vector": (lambda z, w: jl.fit_vector_scaling(z, CLASSES, weights=w), (TIED, np.ones(8))),
    "platt": (lambda z, w: jl.fit_platt(z, LABELS, weights=w), (BOTH, ONES)),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", FITS)
def test_derivatives_are_differences(name: str) -> None:
    """Of all that a fit says, along one direction of all arguments."""
    fit, args = FITS[name]

    def results(*args: Any) -> Any:
        return [x for x in jax.tree.leaves(fit(*args)) if jnp.issubdtype(x.dtype, jnp.floating)]

    rng = np.random.default_rng(0)
    direction = tuple(rng.normal(size=x.shape) for x in args)
    along = jax.jit(lambda *args: jax.jvp(results, args, direction))
    _, tangents = along(*args)
    up, down = (
        along(*(x + h * d for x, d in zip(args, direction, strict=True)))[0] for h in (1e-6, -1e-6)
    )
    for got, high, low in zip(tangents, up, down, strict=True):
        # Differences have errors of some 1e-6**2, and of 1e-16 / 1e-6 from the fit's rounding.
        np.testing.assert_allclose(got, (high - low) / 2e-6, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("x", [0.0, -0.0, 1e-30, -1e-30, 1e-3, -1e-3, 30.0, -30.0])
def test_terms_are_derivatives_of_each_other(x: float) -> None:
    def terms(x: Any) -> Any:
        return [term.reshape(()) for term in binary_terms(x.reshape(1, 1), jnp.full([1], 0.3))]

    (_, residual, curvature), slopes = jax.jvp(terms, (jnp.float32(x),), (jnp.float32(1),))
    p, q = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))
    want = [residual, curvature, p * q * (q - p)]
    np.testing.assert_allclose(slopes, want, rtol=1e-6, atol=3e-8)  # half an ulp of 1/2
