"""Firth's penalty against logistf's published numbers, and against its definition."""

from typing import Any

import _endometrial
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from peer_numbers import LOGISTF, sex2
from scipy.special import log_softmax

import jaxlogits as jl

x64 = pytest.mark.usefixtures("x64")


@x64
def test_sex2_as_logistf_has_it() -> None:
    x, cases, trials = sex2()
    assert (cases.sum(), trials.sum()) == (130, 239)
    fit = jl.fit_logistic(x, cases, trials=trials, firth=True)
    np.testing.assert_allclose(fit.coefficients, LOGISTF["sex2"], rtol=1e-6)
    test = jl.summarize(fit).likelihood_ratio
    np.testing.assert_allclose(test.statistic, 49.09064, atol=5e-6)
    np.testing.assert_allclose(test.p_value, 7.15089e-09, rtol=1e-6)


def penalized(x: Any, labels: Any, b: Any, num_classes: int) -> tuple[Any, Any]:
    """The penalized log likelihood of [P, K - 1] and the information [P, J, P, J]."""
    z = np.concatenate([np.zeros([len(x), 1]), x @ b], axis=1)
    log_p = log_softmax(z, axis=1)
    p = np.exp(log_p)[:, 1:]
    spread = p[:, :, None] * np.eye(num_classes - 1) - p[:, :, None] * p[:, None, :]
    information = np.einsum("np,nq,njk->pjqk", x, x, spread)
    log_det = np.linalg.slogdet(information.reshape(b.size, b.size))[1]
    return log_p[np.arange(len(x)), labels].sum() + log_det / 2, information


def exact(x: Any, labels: Any, num_classes: int) -> tuple[Any, Any, Any]:
    """Coefficients, covariance and penalized log likelihood, by a general method."""
    shape = (x.shape[1], num_classes - 1)
    found = scipy.optimize.minimize(
        lambda b: -penalized(x, labels, b.reshape(shape), num_classes)[0],
        np.zeros(np.prod(shape)),
        method="BFGS",
        options={"gtol": 1e-9},
    )
    b = found.x.reshape(shape)
    value, information = penalized(x, labels, b, num_classes)
    covariance = np.linalg.inv(information.reshape(b.size, b.size))
    return b, covariance.reshape(information.shape), value


@x64
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_endometrial_cancer(dtype: type) -> None:
    x, y = _endometrial.load()
    assert jax.jit(jl.fit_logistic)(x.astype(dtype), y).separated
    fit = jl.fit_logistic(x.astype(dtype), y, firth=True)
    assert fit.converged
    assert not fit.separated
    want, rtol = LOGISTF["endometrial"], 1e-6 if dtype is np.float64 else 3e-6
    np.testing.assert_allclose(fit.coefficients, want, rtol=rtol)
    (b, covariance, value), close = exact(x, y.astype(int), 2), np.testing.assert_allclose
    rtol = 1e-5 if dtype is np.float32 else 2e-6  # of differences of a function, in BFGS
    close(fit.coefficients, b[:, 0], rtol=rtol)
    close(fit.covariance, covariance[:, 0, :, 0], rtol=2 * rtol)
    close(fit.log_likelihood, value, rtol=1e-6 if dtype is np.float32 else 1e-11)


@x64
def test_profile_likelihood_interval() -> None:
    """Its ends as firthmodels' conf_int(method="pl") has them, and the p-value of its lrt()."""
    x, y = _endometrial.load()
    top = jl.fit_logistic(x, y, firth=True).log_likelihood

    def statistic(value: Any) -> Any:
        pinned = np.array([0.0, 1e8, 0.0, 0.0])
        fit = jl.fit_logistic(x, y, offset=value * x[:, 1], l2=pinned, firth=True)
        return 2 * (top - fit.log_likelihood)

    low, high, at_0 = jax.jit(jax.vmap(statistic))(np.array([0.60972444, 7.85463171, 0.0]))
    # What the penalty leaves of the coefficient is 1e-8.
    np.testing.assert_allclose([low, high], scipy.stats.chi2.isf(0.05, 1), atol=1e-6)
    np.testing.assert_allclose(scipy.stats.chi2.sf(at_0, 1), 0.00912367, rtol=1e-6)


@x64
def test_classes_of_which_one_is_separated() -> None:
    x, y = _endometrial.load()
    x, labels = x[::2], np.where(np.arange(40) % 3 == 0, 2, y[::2].astype(int))
    labels[x[:, 1] == 1] = 1
    fit = jl.fit_multinomial(x, labels, 3, firth=True)
    b, covariance, value = exact(x, labels, 3)
    assert fit.converged
    errors = np.sqrt(np.einsum("pjpj->pj", covariance))
    np.testing.assert_allclose((fit.coefficients - b) / errors, 0, atol=2e-5)
    np.testing.assert_allclose(fit.covariance, covariance, rtol=1e-4)
    np.testing.assert_allclose(fit.log_likelihood, value, rtol=1e-10)


ROWS = 14
X = np.column_stack([np.ones(ROWS), np.arange(ROWS), np.cos(np.arange(ROWS))])


def test_separated_data_in_a_vmap() -> None:
    """Finite for each of the thresholds, in any units, and for labels that are all yes."""
    labels = np.arange(ROWS) >= np.arange(0, ROWS, 3)[:, None]
    run = jax.jit(jax.vmap(lambda x, y: jl.fit_logistic(x, y, firth=True), (None, 0)))
    want = run(X.astype(np.float32), labels)
    assert want.converged.all()
    assert jnp.isfinite(want.covariance).all()
    units = np.array([1.0, 1e-6, 1e4])
    fits = run((X * units).astype(np.float32), labels)
    # In standard errors, of which the tolerance is 1e-5.
    errors = np.sqrt(np.einsum("npp->np", want.covariance))
    distance = (np.asarray(fits.coefficients) * units - np.asarray(want.coefficients)) / errors
    np.testing.assert_allclose(distance, 0, atol=1e-4)
    np.testing.assert_array_less(0, want.coefficients[1:, 1])


def test_a_fit_with_fewer_features_has_another_prior() -> None:
    y = np.arange(ROWS) >= 6
    fits = [jl.fit_logistic(X[:, :p].astype(np.float32), y, firth=True) for p in (3, 1)]
    assert jnp.isnan(jl.likelihood_ratio_test(*fits).p_value)
    assert jl.summarize(fits[0]).likelihood_ratio.p_value < 0.05


def test_refuses() -> None:
    with pytest.raises(TypeError, match=r"^firth must be True or False, got 'yes'$"):
        jl.fit_logistic(X.astype(np.float32), np.arange(ROWS) % 2, firth="yes")  # type: ignore[arg-type]
