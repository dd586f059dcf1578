"""The fits of which a bootstrap is timed, each beside loops over what Python packages have."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import statsmodels.api as sm
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.calibration import _SigmoidCalibration, _TemperatureScaling
from sklearn.linear_model import LogisticRegression

import jaxlogits as jl

Numbers = Any


class Data(NamedTuple):
    """Features and labels, logits and classes, or scores and labels."""

    features: np.ndarray
    labels: np.ndarray


class Kind(NamedTuple):
    """A fit, its rows, what it is called with, and the peers, which are given the rows drawn."""

    name: str
    data: Data
    ours: Callable[[Data, jax.Array], Numbers]  # of rows and their weights
    peers: dict[str, Callable[[Data], Numbers]]
    timed: int  # how many fits of a peer


def binary_rows(rows: int, columns: int) -> Data:
    """An intercept and normal features, with log-odds of about -2 to 2."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=[rows, columns])
    features[:, 0] = 1
    log_odds = features @ rng.normal(size=columns) / columns**0.5
    return Data(features, (rng.uniform(size=rows) < 1 / (1 + np.exp(-log_odds))).astype(float))


def class_rows(rows: int, columns: int, classes: int) -> Data:
    """An intercept and normal features, and classes."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=[rows, columns])
    features[:, 0] = 1
    return Data(features, drawn(features @ rng.normal(size=[columns, classes]) / columns**0.5))


def logit_rows(rows: int, classes: int) -> Data:
    """Logits that are twice too large, and classes."""
    logits = 4 * np.random.default_rng(0).normal(size=[rows, classes])
    return Data(logits, drawn(logits / 2))


def score_rows(rows: int) -> Data:
    """Log-odds that are twice too large, and labels."""
    logits, labels = logit_rows(rows, 2)
    return Data(logits[:, 1] - logits[:, 0], labels.astype(float))


def drawn(logits: np.ndarray) -> np.ndarray:
    """A class for each row."""
    shares = softmax(logits, axis=1).cumsum(axis=1)
    return (shares > np.random.default_rng(1).uniform(size=[len(logits), 1])).argmax(axis=1)


# The peers.


def by_statsmodels(data: Data) -> Numbers:
    return sm.Logit(data.labels, data.features).fit(disp=0).params


def by_mnlogit(data: Data) -> Numbers:
    return sm.MNLogit(data.labels, data.features).fit(disp=0).params


def by_sklearn(data: Data) -> Numbers:
    # The quickest of its solvers here; C = inf is no penalty.
    model = LogisticRegression(C=np.inf, fit_intercept=False, solver="newton-cholesky", tol=1e-6)
    kernel = model.fit(data.features, data.labels).coef_.T
    return kernel[:, 0] if kernel.shape[1] == 1 else (kernel - kernel[:, :1])[:, 1:]


def by_firthmodels(data: Data) -> Numbers:
    from firthmodels import FirthLogisticRegression

    model = FirthLogisticRegression(fit_intercept=False, gtol=1e-6, xtol=1e-6)
    return model.fit(data.features, data.labels).coef_


def temperature_by_sklearn(data: Data) -> Numbers:
    return 1 / _TemperatureScaling().fit(*data).beta_


def platt_by_sklearn(data: Data) -> Numbers:
    model = _SigmoidCalibration().fit(*data)
    return np.array([-model.a_, -model.b_])


def vector_scaling_by_scipy(data: Data) -> Numbers:
    """As one writes it: the loss and its gradient, and BFGS."""
    z, labels = data
    rows, num_classes = np.arange(len(z)), z.shape[1]

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        scale, bias = np.split(point, 2)
        log_p = log_softmax(z * scale + bias, axis=1)
        residual = np.exp(log_p)
        residual[rows, labels] -= 1
        gradient = np.concatenate([(residual * z).sum(axis=0), residual.sum(axis=0)])
        return -log_p[rows, labels].sum(), gradient

    start = np.repeat([1.0, 0.0], num_classes)
    scale, bias = np.split(minimize(loss, start, jac=True, options={"gtol": 1e-4}).x, 2)
    return np.concatenate([scale, bias - bias.mean()])


# Ours.


def logistic(data: Data, weights: jax.Array) -> jax.Array:
    return jl.fit_logistic(*data, weights=weights).coefficients


def logistic_firth(data: Data, weights: jax.Array) -> jax.Array:
    return jl.fit_logistic(*data, weights=weights, firth=True).coefficients


def multinomial(data: Data, weights: jax.Array) -> jax.Array:
    return jl.fit_multinomial(*data, CLASSES, weights=weights).coefficients


def multinomial_firth(data: Data, weights: jax.Array) -> jax.Array:
    return jl.fit_multinomial(*data, CLASSES, weights=weights, firth=True).coefficients


def temperature(data: Data, weights: jax.Array) -> jax.Array:
    return jl.fit_temperature(*data, weights=weights).temperature


def platt(data: Data, weights: jax.Array) -> jax.Array:
    return jnp.stack(jl.fit_platt(*data, weights=weights)[:2])


def vector_scaling(data: Data, weights: jax.Array) -> jax.Array:
    return jnp.concatenate(jl.fit_vector_scaling(*data, weights=weights)[:2])


CLASSES = 3
REGRESSIONS = {"statsmodels": by_statsmodels, "scikit-learn": by_sklearn}
OF_CLASSES = {"statsmodels": by_mnlogit, "scikit-learn": by_sklearn}
KINDS = [
    Kind("fit_logistic", binary_rows(200, 4), logistic, REGRESSIONS, 100),
    Kind("fit_logistic", binary_rows(6000, 8), logistic, REGRESSIONS, 20),
    Kind(
        "fit_logistic, firth",
        binary_rows(200, 4),
        logistic_firth,
        {"firthmodels": by_firthmodels},
        100,
    ),
    Kind("fit_multinomial", class_rows(200, 4, CLASSES), multinomial, OF_CLASSES, 50),
    Kind("fit_multinomial, firth", class_rows(200, 4, CLASSES), multinomial_firth, {}, 0),
    Kind(
        "fit_temperature",
        logit_rows(200, 4),
        temperature,
        {"scikit-learn": temperature_by_sklearn},
        50,
    ),
    Kind(
        "fit_temperature",
        logit_rows(2000, 10),
        temperature,
        {"scikit-learn": temperature_by_sklearn},
        20,
    ),
    Kind("fit_platt", score_rows(200), platt, {"scikit-learn": platt_by_sklearn}, 50),
    Kind(
        "fit_vector_scaling",
        logit_rows(200, 4),
        vector_scaling,
        {"SciPy": vector_scaling_by_scipy},
        20,
    ),
]
