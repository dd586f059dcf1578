"""What other packages say of the same data: pairs of numbers, for a test and for a table.

``benchmarks/agreement.py`` writes the table, ``tests/test_peer_numbers.py`` compares where the
package is installed. All in float64.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import _endometrial
import jax
import numpy as np
from scipy.special import expit, softmax

import jaxlogits as jl


class Pair(NamedTuple):
    """A number of ours or several, and the peer's, which are alike to ``tolerance``."""

    what: str
    ours: Any
    theirs: Any
    tolerance: float = 1e-12

    @property
    def difference(self) -> float:
        """The largest, relative to the largest of the peer's numbers."""
        theirs = np.asarray(self.theirs, float)
        return float(np.max(np.abs(np.asarray(self.ours) - theirs)) / np.max(np.abs(theirs)))


# Data.

# How many women with and without a urinary tract infection have which of age, oc, vic, vicl, vis
# and dia: the data set sex2 of R's package logistf.
_CASES = """000010 1 001000 14 001010 3 001100 10 001110 12 001111 1 010000 44 010001 3 011000 15
    011001 1 011010 2 011100 7 011110 3 101000 2 101010 1 101011 1 101100 1 101111 1 110000 5
    111000 3"""
_CONTROLS = """000010 1 001000 2 001010 1 001100 8 001110 18 010000 42 010010 1 011000 1 011100 5
    011110 6 101100 2 101110 4 110000 14 110010 1 111000 1 111110 2"""


def sex2() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [23, 7], cases and trials [23]."""
    counts = []
    for table in (_CASES, _CONTROLS):
        words = table.split()
        counts.append(dict(zip(words[::2], map(int, words[1::2]), strict=True)))
    patterns = sorted(counts[0].keys() | counts[1].keys())
    cases, controls = (np.array([count.get(p, 0) for p in patterns]) for count in counts)
    x = np.array([[1, *map(int, pattern)] for pattern in patterns], float)
    return x, cases, cases + controls


def each_woman() -> tuple[np.ndarray, np.ndarray]:
    """The same with a row for each, features [239, 7] and labels [239]."""
    x, cases, trials = sex2()
    labels = np.concatenate([np.arange(n) < k for k, n in zip(cases, trials, strict=True)])
    return np.repeat(x, trials, axis=0), labels.astype(float)


def binary_scores(n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds that are twice as sure as they should be."""
    rng = np.random.default_rng(n)
    x = rng.normal(size=n)
    return 2 * x, (rng.uniform(size=n) < expit(x)).astype(int)


def class_scores(n: int = 600, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are twice as sure as they should be."""
    rng = np.random.default_rng(n + k)
    z = 1.5 * rng.normal(size=[n, k])
    return 2 * z, np.argmax(z + rng.gumbel(size=z.shape), axis=1)


# Peers.

# summary(logistf(case ~ age + oc + vic + vicl + vis + dia, data = sex2)) and
# logistf(HG ~ NV + PI + EH), of the endometrial cancer data; its own tolerance is 1e-5 of the
# likelihood's slope.
LOGISTF = {
    "sex2": [
        0.12025405,
        -1.10598131,
        -0.06881673,
        2.26887464,
        -2.11140817,
        -0.78831694,
        3.09601166,
    ],
    "endometrial": [3.77455951, 2.92927330, -0.03475175, -2.60416387],
}


# The README of firthlogist, whose standard errors are the inverse information's, as in the paper.
FIRTHLOGIST = {
    "coefficients": [0.120254, -1.10598, -0.0688167, 2.26887, -2.11141, -0.788317, 3.09601],
    "standard errors": [0.485542, 0.42366, 0.443793, 0.548416, 0.543082, 0.417368, 1.67501],
}


def _separated() -> Iterator[tuple[str, np.ndarray, np.ndarray, jl.LogisticFit]]:
    for name, (x, y) in (("sex2", each_woman()), ("endometrial", _endometrial.load())):
        yield name, x, y, jl.fit_logistic(x, y, firth=True)


def logistf() -> Iterator[Pair]:
    for name, _, _, fit in _separated():
        yield Pair(f"coefficients, {name}", fit.coefficients, LOGISTF[name], 1e-6)
        if name == "sex2":
            test = jl.summarize(fit).likelihood_ratio
            yield Pair("likelihood-ratio statistic, sex2", test.statistic, 49.09064, 1e-6)
            yield Pair("its p-value, sex2", test.p_value, 7.15089e-09, 1e-6)


def firthlogist() -> Iterator[Pair]:
    """To the digits that it prints."""
    summary = jl.summarize(jl.fit_logistic(*each_woman(), firth=True))
    ours = {"coefficients": summary.coefficients, "standard errors": summary.standard_errors}
    for what, theirs in FIRTHLOGIST.items():
        yield Pair(f"{what}, sex2", ours[what], theirs, 4e-6)
    yield Pair("penalized log likelihood, sex2", summary.log_likelihood, -132.5394, 5e-7)


def errors_of_augmented_data(x: np.ndarray, fit: jl.LogisticFit) -> np.ndarray:
    """Standard errors of rows that count once and once more by their leverages.

    Half for yes and half for no: that the gradient is 0 there is Firth's equation. logistf's newer
    versions and firthmodels print these, which are smaller than the inverse information's.
    """
    p = expit(x @ np.asarray(fit.coefficients))
    w = p * (1 - p)
    leverages = w * np.einsum("np,pq,nq->n", x, np.asarray(fit.covariance), x)
    return np.sqrt(np.diag(np.linalg.inv((x.T * (w * (1 + leverages))) @ x)))


def firthmodels() -> Iterator[Pair]:
    from firthmodels import FirthLogisticRegression

    for name, x, y, fit in _separated():
        model = FirthLogisticRegression(
            backend="numpy", max_iter=200, gtol=1e-10, xtol=1e-10, fit_intercept=False
        )
        theirs, errors = model.fit(x, y), errors_of_augmented_data(x, fit)
        yield Pair(f"coefficients, {name}", fit.coefficients, theirs.coef_, 1e-6)
        yield Pair(f"standard errors of augmented data, {name}", errors, theirs.bse_, 1e-6)
        yield Pair(f"penalized log likelihood, {name}", fit.log_likelihood, theirs.loglik_, 1e-6)


def sklearn() -> Iterator[Pair]:
    from sklearn.calibration import calibration_curve
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import brier_score_loss, log_loss

    (x, y), (z, labels) = binary_scores(), class_scores()
    p, probs = expit(x), softmax(z, axis=1)
    curve = jl.binary_reliability_curve(x, y)
    full = np.asarray(curve.weight) > 0
    rate, mean = calibration_curve(y, p, n_bins=15)
    yield Pair("binary_reliability_curve, rates", curve.rate[full], rate)
    yield Pair("binary_reliability_curve, probabilities", curve.probability[full], mean)
    yield Pair("binary_brier_score", jl.binary_brier_score(x, y), brier_score_loss(y, p))
    yield Pair("brier_score", jl.brier_score(z, labels), brier_score_loss(labels, probs))
    losses = jl.softmax_cross_entropy_with_integer_labels(z, labels)
    yield Pair("cross entropy", losses.mean(), log_loss(labels, probs))
    model = LogisticRegression(
        C=1 / 2, fit_intercept=False, solver="newton-cholesky", tol=1e-12, max_iter=1000
    )
    fit = jl.fit_logistic(z, y, l2=2.0)
    yield Pair(
        "fit_logistic with l2, coefficients", fit.coefficients, model.fit(z, y).coef_[0], 1e-8
    )


def netcal() -> Iterator[Pair]:
    from netcal.metrics import ECE, MCE

    (x, y), (z, labels) = binary_scores(), class_scores()
    p, probs = expit(x), softmax(z, axis=1)
    yield Pair(
        "expected_calibration_error",
        jl.expected_calibration_error(z, labels),
        ECE(15).measure(probs, labels),
    )
    of_rank = ECE(15, equal_intervals=False).measure(probs, labels)
    yield Pair("adaptive_calibration_error", jl.adaptive_calibration_error(z, labels), of_rank)
    yield Pair(
        "maximum_calibration_error",
        jl.maximum_calibration_error(z, labels),
        MCE(15).measure(probs, labels),
    )
    each = [ECE(15).measure(probs[:, k], labels == k) for k in range(4)]
    yield Pair(
        "classwise_calibration_error", jl.classwise_calibration_error(z, labels), np.mean(each)
    )
    yield Pair("binary_calibration_error", jl.binary_calibration_error(x, y), ECE(15).measure(p, y))


def torchmetrics() -> Iterator[Pair]:
    import torch
    from torchmetrics.functional.classification import (
        binary_calibration_error,
        multiclass_calibration_error,
    )

    (x, y), (z, labels) = binary_scores(), class_scores()
    p, probs = torch.from_numpy(expit(x)), torch.from_numpy(softmax(z, axis=1))
    y_, labels_ = torch.from_numpy(y), torch.from_numpy(labels)
    # They count in float32.
    theirs = binary_calibration_error(p, y_)
    yield Pair("binary_calibration_error", jl.binary_calibration_error(x, y), theirs, 1e-6)
    for ours, norm in (("expected_calibration_error", "l1"), ("maximum_calibration_error", "max")):
        theirs = multiclass_calibration_error(probs, labels_, 4, norm=norm)
        yield Pair(ours, getattr(jl, ours)(z, labels), theirs, 1e-6)
    each = [float(binary_calibration_error(probs[:, k], (labels_ == k).long())) for k in range(4)]
    ours = jl.classwise_calibration_error(z, labels)
    yield Pair("classwise_calibration_error, by class", ours, np.mean(each), 1e-6)


def trl() -> Iterator[Pair]:
    import peer_policies

    return peer_policies.pairs()


# What each needs, and its comparisons. The published numbers need nothing.
PEERS: dict[str, tuple[tuple[str, ...], Callable[[], Iterator[Pair]]]] = {
    "logistf, published": ((), logistf),
    "firthlogist, published": ((), firthlogist),
    "firthmodels": (("firthmodels",), firthmodels),
    "scikit-learn": (("sklearn",), sklearn),
    "netcal": (("netcal",), netcal),
    "torchmetrics": (("torch", "torchmetrics"), torchmetrics),
    "trl": (("torch", "trl"), trl),
}


def pairs_of(peer: str) -> list[Pair]:
    """All comparisons with a peer, in float64, whatever it warns of."""
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(PEERS[peer][1]())
