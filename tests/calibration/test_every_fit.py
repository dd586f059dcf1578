"""What is asked of every fit: of regressions, with Firth's penalty too, and of calibration."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlogits as jl

Array = jax.Array
Arrays = dict[str, np.ndarray]
Numbers = dict[str, Array]
ROWS, CLASSES = 16, 3


class Fit(NamedTuple):
    """A fit as a function of named arrays, those of floats being differentiable."""

    fn: Callable[..., Any]
    given: Arrays
    separated: Arrays  # what to replace for data that a line tells apart, or without a minimum
    ends: bool  # whether there is an answer to these
    collinear: Arrays  # what to replace for data that don't determine the numbers
    undetermined: Callable[[Any], Any] = np.isnan  # true of the numbers then

    def numbers(self, given: Any) -> Numbers:
        """What is fitted and what is said of it, without the steps."""
        fields = self.fn(**given)._asdict()
        return {name: x for name, x in fields.items() if name not in ("steps", "firth")}


RNG = np.random.default_rng(0)
X = np.column_stack([np.ones(ROWS), RNG.normal(size=[ROWS, 2])])
YES = (RNG.uniform(size=ROWS) < 1 / (1 + np.exp(-X @ [0.2, 1.0, -0.5]))).astype(float)
KINDS = np.where(np.arange(ROWS) % 5 == 0, 2, YES).astype(np.int32)
WEIGHTS = RNG.uniform(0.5, 1.5, ROWS)
STEPS = np.column_stack([np.ones(ROWS), np.arange(ROWS), np.cos(np.arange(ROWS))])
COPIES = np.column_stack([X, 0.7 * X[:, 1] - 0.3])[:, [0, 1, 3]]  # of as many columns
LOGITS = 2 * RNG.normal(size=[ROWS, CLASSES])
NOISY = (LOGITS / 2 + RNG.gumbel(size=[ROWS, CLASSES])).argmax(axis=1).astype(np.int32)
L2 = np.array([0.0, 0.3, 0.2])

REGRESSION = {"features": X, "weights": WEIGHTS, "l2": L2}
YES_NO = REGRESSION | {"labels": 0.1 + 0.8 * YES, "offset": np.sin(np.arange(ROWS))}
OF_CLASSES = REGRESSION | {
    "labels": KINDS,
    "offset": np.sin(np.arange(2 * ROWS)).reshape(ROWS, 2),
}
NO_PENALTY = {"l2": np.zeros(3)}
TOLD_APART = {"features": STEPS, "offset": np.zeros(ROWS), **NO_PENALTY}
BY_A_LINE = TOLD_APART | {"labels": (np.arange(ROWS) >= 6).astype(float)}
BY_LINES = TOLD_APART | {
    "labels": np.digitize(np.arange(ROWS), [4, 10]).astype(np.int32),
    "offset": np.zeros([ROWS, 2]),
}
COLLINEAR = NO_PENALTY | {"features": COPIES}


def multinomial(firth: bool) -> Callable[..., Any]:
    return functools.partial(jl.fit_multinomial, num_classes=CLASSES, firth=firth)


FITS = {
    "logistic": Fit(jl.fit_logistic, YES_NO, BY_A_LINE, False, COLLINEAR),
    "logistic, firth": Fit(
        functools.partial(jl.fit_logistic, firth=True), YES_NO, BY_A_LINE, True, COLLINEAR
    ),
    "multinomial": Fit(multinomial(False), OF_CLASSES, BY_LINES, False, COLLINEAR),
    "multinomial, firth": Fit(multinomial(True), OF_CLASSES, BY_LINES, True, COLLINEAR),
    "temperature": Fit(
        jl.fit_temperature,
        {"logits": LOGITS, "labels": NOISY, "weights": WEIGHTS},
        {"labels": LOGITS.argmax(axis=1).astype(np.int32)},
        False,
        {"logits": np.ones([ROWS, CLASSES])},
        np.isinf,
    ),
    "vector scaling": Fit(
        jl.fit_vector_scaling,
        {"logits": LOGITS, "labels": NOISY, "weights": WEIGHTS, "l2": np.array(0.1)},
        {"labels": LOGITS.argmax(axis=1).astype(np.int32), "l2": np.array(0.0)},
        False,
        {"logits": LOGITS[:, :1] * np.array([[1.0, 1.0, 0.0]]), "l2": np.array(0.0)},
    ),
    "Platt": Fit(
        jl.fit_platt,
        {"scores": LOGITS[:, 0], "labels": 0.1 + 0.8 * (NOISY == 0), "weights": WEIGHTS},
        {"labels": (LOGITS[:, 0] > 0).astype(float)},
        True,
        {"scores": np.full(ROWS, 3.0)},
    ),
}
FITTED = {"coefficients", "temperature", "scale", "bias", "slope", "intercept"}
each_fit = pytest.mark.parametrize("name", FITS)


def in_dtype(given: Arrays, dtype: type = np.float32) -> Arrays:
    return {name: x if x.dtype == np.int32 else x.astype(dtype) for name, x in given.items()}


def floats(tree: Any) -> list[Any]:
    """The numbers of a fit that are any, flat."""
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


@functools.cache
def alone(name: str) -> Any:
    return jax.jit(FITS[name].numbers)


# Many at once.


@each_fit
def test_vmap_is_a_loop(name: str) -> None:
    """Over all arrays, one set of which is separated, and over weights alone, as in a bootstrap."""
    fit = FITS[name]
    ordinary = in_dtype(fit.given)
    others = {k: x[::-1].copy() if x.shape[:1] == (ROWS,) else x for k, x in ordinary.items()}
    others["weights"] = ordinary["weights"] + 1
    datasets = [ordinary, ordinary | in_dtype(fit.separated), others]
    together = jax.jit(jax.vmap(fit.numbers))(jax.tree.map(lambda *x: np.stack(x), *datasets))
    weights = np.stack([np.bincount(np.arange(ROWS) * i % ROWS, minlength=ROWS) for i in (1, 3, 2)])
    weights = (weights + 0.25).astype(np.float32)
    drawn = jax.jit(jax.vmap(lambda w: fit.numbers(ordinary | {"weights": w})))(weights)
    loops = [(together, datasets), (drawn, [ordinary | {"weights": w} for w in weights])]
    for many, given in loops:
        for i, one in enumerate(given):
            got, want = jax.tree.map(lambda x, i=i: x[i], many), alone(name)(one)
            assert got["converged"] == want["converged"]
            if not want["converged"]:
                # Where it stops to matter depends on the last digit.
                assert got.get("separated", True) == want.get("separated", True)
                continue
            for a, b in zip(floats(got), floats(want), strict=True):
                # XLA may add up in another order, and steps end within 1e-5 standard errors.
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


# Derivatives.


@pytest.mark.newest
@pytest.mark.compiled  # one large program for each fit, which runs often
@pytest.mark.usefixtures("x64")
@each_fit
def test_derivatives(name: str) -> None:
    """In each of the arrays, forward and reverse, against differences."""
    fit = FITS[name]
    constant = {k: x for k, x in fit.given.items() if x.dtype == np.int32}
    point = {k: jnp.asarray(x) for k, x in fit.given.items() if k not in constant}

    def results(given: Any) -> Any:
        return floats(fit.numbers(constant | given))

    def total(given: Any) -> Array:
        return sum(
            jnp.sum(jnp.cos(jnp.arange(x.size)).reshape(x.shape) * x) for x in results(given)
        )

    @jax.jit
    def run(given: Any, direction: Any) -> Any:
        value, tangent = jax.jvp(results, [given], [direction])
        return value, tangent, jax.grad(total)(given)

    rng = np.random.default_rng(1)
    h = 1e-5  # of errors h^2 and 1e-12 / h
    for k, x in point.items():
        direction = jax.tree.map(jnp.zeros_like, point)
        step = rng.normal(size=x.shape) / 4
        if k == "features":
            step[:, 0] = 0  # the null model is a special case only beside an intercept
        if k == "l2":
            step = np.abs(step) * (np.asarray(x) > 0)
        direction[k] = jnp.asarray(step)
        _, tangents, gradient = run(point, direction)
        above, below = (
            run(jax.tree.map(lambda a, d, s=s: a + s * d, point, direction), direction)[0]
            for s in (h, -h)
        )
        along = 0.0
        for slope, a, b in zip(tangents, above, below, strict=True):
            difference = (a - b) / (2 * h)
            atol = 1e-6 * max(float(np.abs(difference).max()), 1e-2)
            np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=atol, err_msg=k)
            along += np.sum(np.cos(np.arange(slope.size)).reshape(slope.shape) * slope)
        size = np.abs(gradient[k] * step).sum()
        np.testing.assert_allclose(np.sum(gradient[k] * step), along, rtol=0, atol=1e-9 * size)


# Data that a line tells apart, and data that don't say which numbers.


@pytest.mark.usefixtures("x64")
@each_fit
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_separation(name: str, dtype: type) -> None:
    fit = FITS[name]
    found = alone(name)(in_dtype(fit.given | fit.separated, dtype))
    assert found["converged"] == fit.ends
    covariance = found.pop("covariance", None)
    for numbers in floats(found):
        assert jnp.isfinite(numbers).all()
    if covariance is not None:
        assert jnp.isfinite(covariance).all() == fit.ends
        assert found["separated"] != fit.ends


@pytest.mark.usefixtures("x64")
@each_fit
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_collinear(name: str, dtype: type) -> None:
    fit = FITS[name]
    found = alone(name)(in_dtype(fit.given | fit.collinear, dtype))
    assert not found["converged"]
    assert not found.get("separated", False)
    for field in FITTED & set(found):
        assert fit.undetermined(found[field]).all()


# Columns far from 0, and weights.

FAR = {
    "features": X @ np.diag([1.0, 5.0, 1.0]) + [0, 1997, 4096],
    "logits": LOGITS + 512 + 64 * np.arange(ROWS)[:, None] % 7,
    "scores": LOGITS[:, 0] + 2048,
}


@each_fit
def test_columns_far_from_0_in_float32(name: str) -> None:
    """As accurate as with the same numbers in float64."""
    fit = FITS[name]
    given = in_dtype(fit.given | {k: x for k, x in FAR.items() if k in fit.given})
    got = alone(name)(given)
    with jax.enable_x64(True):
        want = jax.tree.map(np.asarray, alone(name)(in_dtype(given, np.float64)))
    assert got["converged"]
    assert want["converged"]
    if "covariance" in want:
        size = want["coefficients"].size
        errors = np.sqrt(np.diagonal(want["covariance"].reshape(size, size)))
        distance = (np.asarray(got["coefficients"]) - want["coefficients"]).ravel() / errors
        np.testing.assert_allclose(distance, 0, atol=1e-4)
        covariance = np.asarray(got["covariance"]).reshape(size, size)
        np.testing.assert_allclose(np.sqrt(np.diagonal(covariance)), errors, rtol=1e-4)
        np.testing.assert_allclose(got["log_likelihood"], want["log_likelihood"], rtol=1e-5)
        return
    for a, b in zip(floats(got), floats(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.mark.usefixtures("x64")
@each_fit
def test_weights_are_frequencies(name: str) -> None:
    """A weight of 2 is a row given twice, and a weight of 0 is none."""
    fit = FITS[name]
    times = np.arange(ROWS) % 3
    rows = np.repeat(np.arange(ROWS), times)
    given = {k: x[rows] if x.shape[:1] == (ROWS,) else x for k, x in fit.given.items()}
    want = alone(name)(given | {"weights": np.ones(len(rows))})
    got = alone(name)(fit.given | {"weights": times.astype(float)})
    for a, b in zip(floats(got), floats(want), strict=True):
        # Steps end within 1e-12 standard errors, or 1e-8 with Firth's penalty.
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


# With a prior, or with Platt's targets, the size of the weights says how many rows there are.
NO_PRIOR = [name for name in FITS if name != "Platt" and "firth" not in name]


@pytest.mark.parametrize("name", NO_PRIOR)
@pytest.mark.parametrize("scale", [1e-20, 1e-9, 1e9])
def test_the_scale_of_weights(name: str, scale: float) -> None:
    """It changes nothing but the covariance."""
    given = in_dtype(FITS[name].given)
    if "l2" in given:
        given["l2"] = 0 * given["l2"]
    want = alone(name)(given)
    got = alone(name)(given | {"weights": (scale * given["weights"]).astype(np.float32)})
    assert got["converged"]
    for field in FITTED & set(want):
        np.testing.assert_allclose(got[field], want[field], rtol=1e-4, atol=1e-4)
    if "covariance" in want:
        np.testing.assert_allclose(got["covariance"] * scale, want["covariance"], rtol=1e-4)
        np.testing.assert_allclose(got["log_likelihood"] / scale, want["log_likelihood"], rtol=1e-5)
