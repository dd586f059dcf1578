"""The terms of a row's likelihood against mpmath, and blocks of rows against all rows at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro

import jaxlogits as jl
from jaxlogits._src.regression import likelihood as module
from jaxlogits._src.regression.coordinates import Coordinates
from jaxlogits._src.regression.counts import divergence, saturated
from jaxlogits._src.regression.design import Design, Rows
from jaxlogits._src.regression.likelihood import binary_terms, class_terms, total_loss
from jaxlogits._src.regression.two_floats import TwoFloats

# Log-odds at which 1 - p, or p itself, is lost in float32.
LOG_ODDS = np.array([-800.0, -90.0, -20.0, -1.5, 0.0, 0.25, 3.0, 20.0, 90.0, 800.0], np.float32)


def assert_close(got: jax.Array, want: np.ndarray, ulps: float) -> None:
    """Relative to each number; numbers below the smallest normal one are flushed to 0."""
    want = np.asarray(want).astype(float)
    np.testing.assert_allclose(got, want, rtol=ulps * 2**-23, atol=2.0**-126)


@pytest.mark.parametrize("label", [0.0, 0.25, 1.0])
def test_binary_terms(label: float) -> None:
    terms = jax.jit(binary_terms)(LOG_ODDS[None], jnp.full_like(LOG_ODDS, label))
    x, y = ro.exact(LOG_ODDS), ro.mp.mpf(label)
    p, q = ro.sigmoid(x), ro.sigmoid(-x)
    # The losses add up two rounded terms; of p - 0.25 the difference of p and 0.25 cancels none.
    assert_close(terms[0], -(y * ro.log(p) + (1 - y) * ro.log(q)), 4)
    assert_close(terms[1][0], (1 - y) * p - y * q, 6)
    assert_close(terms[2][0, 0], p * q, 6)


def test_class_terms() -> None:
    rows = np.stack([LOG_ODDS, LOG_ODDS[::-1] / 2])
    labels = np.arange(10, dtype=np.int32) % 3
    losses, residuals, curvature = jax.jit(class_terms)(rows, labels)
    for i, label in enumerate(labels):
        z = np.concatenate([ro.exact(np.zeros(1)), ro.exact(rows[:, i])])
        p = ro.softmax(z)
        rest = np.array([np.sum(np.delete(p, k)) for k in range(3)])
        assert_close(losses[i], -ro.log_softmax(z)[label], 8)
        assert_close(residuals[:, i], np.where(np.arange(3) == label, -rest, p)[1:], 8)
        want = np.where(np.eye(3, dtype=bool), p * rest, -p[:, None] * p[None, :])[1:, 1:]
        assert_close(curvature[:, :, i], want, 16)


def test_a_label_of_no_class_is_nan() -> None:
    losses, residuals, _ = jax.jit(class_terms)(jnp.zeros([2, 3]), jnp.array([-1, 2, 3]))
    for numbers in (losses, *residuals):
        np.testing.assert_array_equal(jnp.isnan(numbers), [True, False, True])


@pytest.mark.parametrize("distance", [1e-5, 1e-2, 0.6, 3.0, 40.0])
def test_divergence_of_shares(distance: float) -> None:
    """Of equal ones it is 0, and as accurate nearby as the log-odds are apart."""
    shares = np.array([0.0, 1e-6, 0.03, 0.25, 0.5, 0.75, 1.0], np.float32)
    at = np.log(np.clip(shares, 1e-3, 0.999) / (1 - np.clip(shares, 1e-3, 0.999)))
    log_odds = np.concatenate([at + distance, at - distance]).astype(np.float32)
    positive = np.concatenate([shares, shares])
    nothing = jnp.zeros_like(positive)
    at, negative = TwoFloats(jnp.asarray(log_odds), nothing), TwoFloats(1 - positive, nothing)
    got = jax.jit(divergence)(at, positive, negative)
    assert (got >= 0).all()
    for x, s, value in zip(ro.exact(log_odds), ro.exact(positive), got, strict=True):
        terms = [(p, q) for p, q in ((s, ro.sigmoid(x)), (1 - s, ro.sigmoid(-x))) if p > 0]
        want = sum(p * ro.mp.log(p / q) for p, q in terms)
        # The log-odds of the share have an error of an ulp or two, of up to 14.
        slack = 3 * 2**-23 * (1 + abs(float(x))) / max(distance, 1e-5)
        assert abs(float(value) - float(want)) <= min(slack, 1e-5 + slack) * float(want) + 1e-12


def test_saturated_counts() -> None:
    trials = np.array([1, 3, 3, 7, 100, 10**6, 10**9, 10**9, 5], np.float32)
    yes = np.array([1, 1, 2, 3, 1, 10, 1, 5 * 10**8, 0], np.float32)
    with ro.mp.workdps(40):
        want = [
            ro.mp.log(ro.mp.binomial(n, y)) + ro.mp.log(p) * y + ro.mp.log1p(-p) * (n - y)
            if 0 < y < n
            else ro.mp.mpf(0)
            for y, n in zip(map(int, yes), map(int, trials), strict=True)
            for p in [ro.mp.mpf(y) / n]
        ]
    got = jax.jit(saturated)(yes, trials)
    # A logarithm of up to 20, and gammaln's few ulp of up to 3.
    np.testing.assert_allclose(got, np.array(want, float), rtol=1e-6, atol=1e-6)


def test_blocks_give_what_all_rows_give(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=[1031, 3]), jnp.float32)  # a prime: rows are left over
    weights = jnp.asarray(rng.uniform(size=1031), jnp.float32)
    offset = jnp.asarray(rng.normal(size=[1031, 2]), jnp.float32)
    labels = jnp.asarray(rng.integers(3, size=1031), jnp.int32)
    kernel = jnp.asarray(rng.normal(size=[2, 3]), jnp.float32)

    coordinates = Coordinates(jnp.zeros(3), jnp.array([0.0, 0.5, 1.0]), jnp.array([1.0, 2.0, 0.5]))

    def run() -> list[jax.Array]:
        def terms(features: jax.Array) -> tuple[jax.Array, module.Terms]:
            rows = Rows(features, features[:, 0], labels, weights, offset)
            found = total_loss(class_terms, Design(rows, coordinates), kernel)
            return found[0], found

        gradient, found = jax.jit(jax.grad(terms, has_aux=True))(features)
        return [gradient, *found]

    whole = run()
    monkeypatch.setattr(module, "_FEW_PRODUCTS", 0)
    monkeypatch.setattr(module, "_BLOCK_SIZE", 256 * 12)
    assert module._num_even_blocks(1031, 256) == 5
    blocked = run()
    for got, want in zip(blocked, whole, strict=True):
        # Sums of a thousand terms, in two orders.
        atol = 1000**0.5 * 2**-23 * float(jnp.abs(want).max())
        np.testing.assert_allclose(got, want, rtol=0, atol=atol)


@pytest.mark.usefixtures("x64")
def test_second_derivatives_of_a_fit_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each order of both modes: before JAX 0.12 a scan forgets the sigmoid's rule by itself."""
    monkeypatch.setattr(module, "_FEW_PRODUCTS", 0)
    monkeypatch.setattr(module, "_BLOCK_SIZE", 1)  # then a block has 256 rows
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(600), rng.normal(size=600)])
    y = (rng.random(600) < 0.4).astype(float)

    def number(by: jax.Array) -> jax.Array:
        weights, offset = jnp.exp(by[0] * x[:, 1]), by[1] * jnp.cos(x[:, 1])
        fit = jl.fit_logistic(x, y, weights=weights, offset=offset)
        return jnp.sum(jnp.sin(fit.coefficients)) + jnp.sin(fit.deviance / 600)

    @jax.jit
    def second(by: jax.Array) -> list[jax.Array]:
        along = jnp.array([1.0, -0.5])
        gradient = jax.grad(number)
        return [
            jax.jvp(gradient, [by], [along])[1],
            jax.grad(lambda by: gradient(by) @ along)(by),
            jax.grad(lambda by: jax.jvp(number, [by], [along])[1])(by),
        ]

    first, *others = second(jnp.array([0.1, 0.2]))
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-7)
