"""The value checks that ``checked`` switches on: what they find, and what they say."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.sharding import AxisType, PartitionSpec

import jaxlogits as jl

NAME = "softmax_cross_entropy_with_integer_labels"
cross_entropy = jl.softmax_cross_entropy_with_integer_labels
focal = jl.softmax_focal_loss_with_integer_labels
NAN, INF = np.nan, np.inf
Z = jnp.zeros([4, 3])
Y = jnp.array([0, 1, 2, 0])
T = jnp.ones([4, 3])
X = jnp.zeros([4])
KEEP = jnp.array([[True, True, False], [True] * 3, [True] * 3, [False] * 3])
KEY = jax.random.key(0)
H = jl.fit_logistic(np.array([[1, 0], [1, 1], [1, 2], [1, 3.0]], np.float32), Y == 1)


# Under every transform.


def nothing(x: Any) -> Any:
    return x


def in_scan(fn: Callable[..., Any]) -> Callable[..., Any]:
    """fn of each row by itself, summed in a scan."""

    def summed(z: Any, labels: Any) -> Any:
        def step(total: Any, row: Any) -> Any:
            return total + jnp.sum(fn(row[0][None], row[1][None])), None

        return lax.scan(step, jnp.float32(0), (z, labels))[0]

    return summed


def in_cond(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda z, labels: lax.cond(
        jnp.all(z == z), lambda: jnp.sum(fn(z, labels)), lambda: jnp.float32(0)
    )


def in_while(fn: Callable[..., Any]) -> Callable[..., Any]:
    def looped(z: Any, labels: Any) -> Any:
        def body(carry: Any) -> Any:
            return carry[0] + 1, carry[1] + jnp.sum(fn(z, labels))

        return lax.while_loop(lambda carry: carry[0] < 2, body, (0, jnp.float32(0)))[1]

    return looped


def total(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: jnp.sum(fn(*args))


MESH, ROWS = jax.make_mesh((4,), ("data",), (AxisType.Auto,)), PartitionSpec("data")

COMPOSITIONS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "plain": nothing,
    "jit": jax.jit,
    "vmap": jax.vmap,
    "vmap of jit": lambda fn: jax.vmap(jax.jit(fn)),
    "jit of vmap": lambda fn: jax.jit(jax.vmap(fn)),
    "grad": lambda fn: jax.grad(total(fn)),
    "jit of grad": lambda fn: jax.jit(jax.grad(total(fn))),
    "jvp": lambda fn: lambda z, labels: jax.jvp(lambda z: fn(z, labels), [z], [z])[1],
    "linearize": lambda fn: lambda z, labels: jax.linearize(lambda z: fn(z, labels), z)[0],
    "hessian": lambda fn: jax.hessian(total(jax.jit(fn))),
    "checkpoint": jax.checkpoint,
    "jit of grad of checkpoint": lambda fn: jax.jit(jax.grad(jax.checkpoint(total(fn)))),
    "scan": in_scan,
    "grad of scan": lambda fn: jax.grad(in_scan(fn)),
    "jit of grad of scan": lambda fn: jax.jit(jax.grad(in_scan(jax.jit(fn)))),
    "cond": in_cond,
    "jit of cond": lambda fn: jax.jit(in_cond(fn)),
    "while": in_while,
    "vmap of grad": lambda fn: jax.vmap(jax.grad(total(jax.jit(fn)))),
    "vmap of vmap": lambda fn: lambda z, y: jax.vmap(jax.vmap(fn))(z[None], y[None])[0],
    "vmap of scan": lambda fn: lambda z, y: jax.vmap(in_scan(fn))(z[None], y[None])[0],
    "shard_map": lambda fn: jax.shard_map(fn, mesh=MESH, in_specs=ROWS, out_specs=ROWS),
    "jit of grad of shard_map": lambda fn: jax.jit(
        jax.grad(total(jax.shard_map(fn, mesh=MESH, in_specs=ROWS, out_specs=ROWS)))
    ),
}


@pytest.mark.parametrize("compose", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_checked_raises_through_every_composition(compose: Callable[..., Any]) -> None:
    """Also for a function that ran before, without checks; and it goes on working afterwards."""
    fn = compose(cross_entropy)
    without = fn(Z, Y)
    checked = jl.checked(fn)
    place = r"( in row (2|0|\(0, 2\)|\(0, 0\))( on device data=2)?)?"
    for _ in range(2):
        np.testing.assert_array_equal(checked(Z, Y), without)
        with pytest.raises(
            ValueError, match=rf"^{NAME}: labels must be in \[0, 3\), got 3{place}$"
        ):
            checked(Z, jnp.array([0, 1, 3, 2]))
    np.testing.assert_array_equal(fn(Z, Y), without)


# Every kind of bad value, and what is said of it.

Violation = tuple[Callable[..., Any], Any, Any, str]

VIOLATIONS: dict[str, Violation] = {
    # Elementwise.
    "logit": (jl.logit, [0.0, 1.0], [0.5, 1.5], "logit: probs must be in [0, 1], got 1.5 in row 1"),
    "logit of NaN": (jl.logit, [0.0], [NAN], "logit: probs must be in [0, 1], got nan in row 0"),
    "logit of a scalar": (jl.logit, 0.0, -0.5, "logit: probs must be in [0, 1], got -0.5"),
    "logit of a matrix": (
        jl.logit,
        [[0.0, 1.0], [0.5, 0.5]],
        [[0.0, 1.0], [0.5, -0.5]],
        "logit: probs must be in [0, 1], got -0.5 at (1, 1)",
    ),
    "sigmoid": (jl.sigmoid, [INF], [NAN], "sigmoid: logits must not be NaN, got nan in row 0"),
    "log_sigmoid": (
        jl.log_sigmoid,
        [INF],
        [NAN],
        "log_sigmoid: logits must not be NaN, got nan in row 0",
    ),
    "softplus": (jl.softplus, [INF], [NAN], "softplus: x must not be NaN, got nan in row 0"),
    "logitexp": (
        jl.logitexp,
        [0.0],
        [0.25],
        "logitexp: log_probs must be at most 0, got 0.25 in row 0",
    ),
    "log1mexp": (jl.log1mexp, [0.0], [-0.25], "log1mexp: x must be at least 0, got -0.25 in row 0"),
    "binary": (
        lambda y: jl.sigmoid_binary_cross_entropy(X[:2], y),
        [0.0, 1.0],
        [1.25, 1.0],
        "sigmoid_binary_cross_entropy: labels must be in [0, 1], got 1.25 in row 0",
    ),
    "binary focal": (
        lambda y: jl.sigmoid_focal_loss(X[:2], y),
        [0.0, 1.0],
        [-1.0, 1.0],
        "sigmoid_focal_loss: labels must be in [0, 1], got -1.0 in row 0",
    ),
    "binary logits": (
        lambda x: jl.sigmoid_binary_cross_entropy(x, x > 0),
        [0.0, INF],
        [0.0, NAN],
        "sigmoid_binary_cross_entropy: logits must not be NaN, got nan in row 1",
    ),
    "pos_weight": (
        lambda w: jl.sigmoid_binary_cross_entropy(X, X, pos_weight=w),
        0.0,
        -1.0,
        "sigmoid_binary_cross_entropy: pos_weight must be at least 0, got -1.0",
    ),
    # Labels.
    "below 0": (
        lambda y: cross_entropy(Z, y),
        [0, 2, 1, 1],
        [0, 2, -1, 3],
        "softmax_cross_entropy_with_integer_labels: labels must be in [0, 3), got -1 in row 2",
    ),
    "of a matrix of rows": (
        lambda y: cross_entropy(jnp.zeros([2, 3, 2]), y, 1),
        [[0, 1], [2, 2]],
        [[0, 1], [3, 2]],
        "softmax_cross_entropy_with_integer_labels: labels must be in [0, 3), got 3 in row (1, 0)",
    ),
    "of an example": (
        lambda y: cross_entropy(Z[0], y),
        2,
        3,
        "softmax_cross_entropy_with_integer_labels: labels must be in [0, 3), got 3",
    ),
    "unsigned": (
        lambda y: cross_entropy(Z, y.astype(jnp.uint8)),
        [0, 2, 1, 1],
        [0, 2, 255, 1],
        "softmax_cross_entropy_with_integer_labels: labels must be in [0, 3), got 255 in row 2",
    ),
    "masked": (
        lambda y: cross_entropy(Z, y, where=KEEP),
        [0, 2, 1, -100],
        [2, 2, 1, -100],
        "softmax_cross_entropy_with_integer_labels: labels must be classes that where keeps, "
        "got 2 in row 0",
    ),
    "focal": (
        lambda y: focal(Z, y),
        [0, 2, 1, 1],
        [0, 2, -100, 1],
        "softmax_focal_loss_with_integer_labels: labels must be in [0, 3), got -100 in row 2",
    ),
    "calibration": (
        lambda y: jl.brier_score(Z, y),
        [0, 2, 1, 1],
        [0, 2, 1, 3],
        "brier_score: labels must be in [0, 3), got 3 in row 3",
    ),
    "a head": (
        lambda y: jl.linear_softmax_cross_entropy(Z, T.T, y, block_size=2, where=KEEP[:, 1]),
        [0, 2, 1, -1],
        [0, 2, 4, -1],
        "linear_softmax_cross_entropy: labels must be in [0, 4), got 4 in row 2",
    ),
    "a head that calls another": (
        lambda y: jl.linear_log_probs(Z, T.T, y, block_size=2),
        [0, 2, 1, 3],
        [0, 2, 1, 4],
        "linear_log_probs: labels must be in [0, 4), got 4 in row 3",
    ),
    # Dense targets.
    "dense": (
        lambda t: jl.softmax_cross_entropy(Z, t),
        T,
        T.at[2, 1].set(-0.25),
        "softmax_cross_entropy: labels must be at least 0, got -0.25 in row 2",
    ),
    "dense of NaN": (
        lambda t: jl.softmax_cross_entropy(Z, t),
        T,
        T.at[2, 1].set(NAN),
        "softmax_cross_entropy: labels must be at least 0, got nan in row 2",
    ),
    "poly": (
        lambda t: jl.poly_loss_cross_entropy(Z, t),
        T,
        T.at[3, 0].set(-1.0),
        "poly_loss_cross_entropy: labels must be at least 0, got -1.0 in row 3",
    ),
    # Logits.
    "NaN": (
        jl.softmax,
        T,
        T.at[1, 2].set(NAN),
        "softmax: logits must not be NaN, got nan in row 1",
    ),
    "bfloat16": (
        lambda z: jl.softmax(z.astype(jnp.bfloat16)),
        T,
        T.at[1, 2].set(NAN),
        "softmax: logits must not be NaN, got nan in row 1",
    ),
    "two inf": (
        jl.log_softmax,
        T.at[1, 0].set(INF),
        T.at[1, :2].set(INF),
        "log_softmax: logits must have at most one +inf in a row, got 2 in row 1",
    ),
    "nothing but -inf": (
        jl.entropy,
        T.at[1, 1:].set(-INF),
        T.at[1].set(-INF),
        "entropy: logits must be above -inf for some class of a row, got -inf in row 1",
    ),
    "of an axis": (
        lambda z: jl.logsumexp(z, 0),
        T.at[:, 1].set(INF),
        T.at[3, 1].set(NAN),
        "logsumexp: logits must not be NaN, got nan in row 1",
    ),
    "of two": (
        lambda z: jl.softmax_kl_divergence(Z, z),
        T,
        T.at[1, 2].set(NAN),
        "softmax_kl_divergence: logits_q must not be NaN, got nan in row 1",
    ),
    "a teacher": (
        lambda z: jl.softmax_cross_entropy_with_teacher_logits(Z, z),
        T,
        T.at[1].set(INF),
        "softmax_cross_entropy_with_teacher_logits: teacher_logits must have at most one +inf in a "
        "row, got 3 in row 1",
    ),
    "recorded": (
        lambda kept: jl.kept_log_probs(Z, Y, kept),
        [[0, -1], [1, 2], [2, -1], [0, 0]],
        [[0, -1], [1, 2], [2, -7], [0, 0]],
        "kept_log_probs: kept must be in [-1, 3), got -7 in row 2",
    ),
    "kept": (
        lambda z: jl.keep_top_k(z, 2),
        T.at[1].set(INF),
        T.at[1, 1].set(NAN),
        "keep_top_k: logits must not be NaN, got nan in row 1",
    ),
    "drawn from": (
        lambda z: jl.sample(KEY, z),
        T.at[1, 1].set(INF),
        T.at[1, 1].set(NAN),
        "sample: logits must not be NaN, got nan in row 1",
    ),
    "capped": (
        lambda z: jl.soft_cap(z, 5.0),
        T.at[1, 1].set(INF),
        T.at[1, 1].set(NAN),
        "soft_cap: logits must not be NaN, got nan at (1, 1)",
    ),
    "of a fit": (
        lambda z: jl.fit_temperature(z, Y),
        T,
        T.at[1, 1].set(-INF),
        "fit_temperature: logits must be above -inf for the label and below inf, got -inf in row 1",
    ),
    "hidden": (
        lambda h: jl.linear_softmax_cross_entropy(h, T.T, Y, block_size=2),
        T,
        T.at[3, 1].set(NAN),
        "linear_softmax_cross_entropy: hidden must not be NaN, got nan in row 3",
    ),
    "kernel": (
        lambda k: jl.linear_softmax_kl_divergence(Z, T.T, Z, k),
        T.T,
        T.T.at[2, 1].set(NAN),
        "linear_softmax_kl_divergence: logits_q must not be NaN, got nan in row 0",
    ),
    "scores": (
        lambda s: jl.conformal_threshold(s, Y, 0.5),
        T.at[0, 1].set(NAN),
        T.at[1, 1].set(NAN),
        "conformal_threshold: scores must not be NaN for a label, got nan in row 1",
    ),
    "scores of a set": (
        lambda s: jl.conformal_set(s, 0.5),
        T.at[0, 1].set(INF),
        T.at[1, 1].set(NAN),
        "conformal_set: scores must not be NaN, got nan at (1, 1)",
    ),
    "threshold": (
        lambda t: jl.conformal_set(Z, t),
        [0.0, 1.0, INF],
        [0.0, 1.0, NAN],
        "conformal_set: threshold must not be NaN, got nan in row 2",
    ),
    "drafts": (
        lambda c: jl.speculative_sample(KEY, c, Z[:3], Z),
        [0, -1, 2],
        [0, -1, 3],
        "speculative_sample: draft_classes must be in [-1, 3), got 3 in row 2",
    ),
    # Weights and frequencies.
    "class_weights": (
        lambda w: cross_entropy(Z, Y, class_weights=w),
        [0.0, 1.0, 2.0],
        [0.0, 1.0, -2.0],
        "softmax_cross_entropy_with_integer_labels: class_weights must be at least 0, "
        "got -2.0 for class 2",
    ),
    "weights": (
        lambda w: jl.brier_score(Z, Y, weights=w),
        [0.0, 1.0, 2.0, 1.0],
        [0.0, 1.0, NAN, 1.0],
        "brier_score: weights must be at least 0, got nan in row 2",
    ),
    "infinite weights": (
        lambda w: jl.brier_score(Z, Y, weights=w),
        [0.0, 1.0, 2.0, 1.0],
        [0.0, 1.0, INF, 1.0],
        "brier_score: weights must be finite, got inf in row 2",
    ),
    "weights of infinitely many rows": (
        lambda w: jl.fit_logistic(Z[:, :1] + 1, Y == 0, weights=w),
        [0.0, 1.0, 2.0, 1.0],
        [0.0, 1.0, INF, 1.0],
        "fit_logistic: weights must be finite, got inf in row 2",
    ),
    "trials": (
        lambda n: jl.fit_logistic(Z[:, :1] + 1, T[:, 0], trials=n),
        [2.0, 2.0, 2.0, 2.0],
        [2.0, 2.0, NAN, 2.0],
        "fit_logistic: trials must be at least 0, got nan in row 2",
    ),
    "offset": (
        lambda c: jl.fit_logistic(Z[:, :1] + 1, Y == 0, offset=c),
        [0.0, 1.0, 2.0, 1.0],
        [0.0, 1.0, INF, 1.0],
        "fit_logistic: offset must be finite, got inf in row 2",
    ),
    "offset of a prediction": (
        lambda c: jl.predict_probs(H, T[:, :2], offset=c),
        [0.0, 1.0, INF, 1.0],
        [0.0, 1.0, NAN, 1.0],
        "predict_probs: offset must not be NaN, got nan in row 2",
    ),
    "coefficients": (
        lambda b: jl.predict_log_odds(H._replace(coefficients=b), T[:, :2]),
        [0.0, 1.0],
        [0.0, NAN],
        "predict_log_odds: coefficients must not be NaN, got nan of feature 1",
    ),
    "features of a sandwich": (
        lambda x: jl.robust_covariance(H, x, Y == 1),
        [[1.0, 0.0], [1.0, 1.0], [1.0, 2.0], [1.0, 3.0]],
        [[1.0, 0.0], [1.0, 1.0], [1.0, NAN], [1.0, 3.0]],
        "robust_covariance: features must be finite, got nan in row 2",
    ),
    "weights of a regression": (
        lambda w: jl.fit_logistic(T[:, :1], Y == 1, weights=w),
        [0.0, 1.0, 2.0, 1.0],
        [0.0, 1.0, -1.0, 1.0],
        "fit_logistic: weights must be at least 0, got -1.0 in row 2",
    ),
    "weights of a head": (
        lambda w: jl.linear_softmax_cross_entropy(Z, T.T, Y, weights=w, where=KEEP[:, 1]),
        [0.0, -1.0, 2.0, NAN],
        [0.0, NAN, 2.0, NAN],
        "linear_softmax_cross_entropy: weights must not be NaN, got nan in row 1",
    ),
    "weights of a mean": (
        lambda w: jl.blockwise_mean(lambda _, x: x[:, 0])(None, Z, weights=w, where=KEEP[:, 1]),
        [0.0, -1.0, 2.0, NAN],
        [0.0, NAN, 2.0, NAN],
        "blockwise_mean: weights must not be NaN, got nan in row 1",
    ),
    "prior": (
        lambda p: jl.adjust_prior(Z, jnp.ones([3]), p),
        [1.0, 0.0, 1.0],
        [1.0, 0.0, -1.0],
        "adjust_prior: target_prior must be at least 0, got -1.0 at (0, 2)",
    ),
    # Regression.
    "share": (
        lambda y: jl.fit_logistic(T[:, :1], y),
        [0.0, 0.5, 1.0, 0.0],
        [0.0, 0.5, 1.5, 0.0],
        "fit_logistic: labels must be in [0, 1], got 1.5 in row 2",
    ),
    "features": (
        lambda x: jl.fit_logistic(x[:, :1], Y == 1),
        T,
        T.at[1, 0].set(INF),
        "fit_logistic: features must be finite, got inf in row 1",
    ),
    "collinear": (
        lambda x: jl.fit_logistic(x, Y == 1),
        jnp.array([[1, 0], [1, 1], [1, 2], [1, 4.0]]),
        jnp.ones([4, 2]),
        "fit_logistic: features must be finite, and no column a combination of others, got nan",
    ),
    "a fit by another": (
        lambda y: jl.fit_platt(jnp.arange(4.0), y),
        [0.0, 0.5, 1.0, 0.0],
        [0.0, 0.5, 1.5, 0.0],
        "fit_platt: labels must be in [0, 1], got 1.5 in row 2",
    ),
}


@pytest.mark.parametrize("kind", VIOLATIONS)
def test_what_is_found_and_said(kind: str) -> None:
    fn, good, bad, message = VIOLATIONS[kind]
    checked, good, bad = jl.checked(fn), jnp.asarray(good), jnp.asarray(bad)
    checked(good)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        checked(bad)


RANGES: dict[str, tuple[Callable[..., Any], float]] = {
    "label_smoothing of softmax_cross_entropy": (
        lambda x: jl.softmax_cross_entropy(Z, T, label_smoothing=x),
        1.0,
    ),
    "label_smoothing of softmax_cross_entropy_with_integer_labels": (
        lambda x: cross_entropy(Z, Y, label_smoothing=x),
        -0.5,
    ),
    "label_smoothing of sigmoid_binary_cross_entropy": (
        lambda x: jl.sigmoid_binary_cross_entropy(X, X, label_smoothing=x),
        NAN,
    ),
    "z_loss of softmax_cross_entropy": (
        lambda x: jl.softmax_cross_entropy(Z, T, z_loss=x),
        -1.0,
    ),
    "z_loss of linear_softmax_cross_entropy": (
        lambda x: jl.linear_softmax_cross_entropy(Z, T.T, Y, z_loss=x),
        -1.0,
    ),
    "gamma of sigmoid_focal_loss": (lambda x: jl.sigmoid_focal_loss(X, X, gamma=x), -1.0),
    "alpha of sigmoid_focal_loss": (lambda x: jl.sigmoid_focal_loss(X, X, alpha=x), 2.0),
    "gamma of softmax_focal_loss_with_integer_labels": (lambda x: focal(Z, Y, gamma=x), -1.0),
    "epsilon of poly_loss_cross_entropy": (
        lambda x: jl.poly_loss_cross_entropy(Z, T, epsilon=x),
        -2.0,
    ),
    "weight of jensen_shannon_divergence": (
        lambda x: jl.jensen_shannon_divergence(Z, T, weight=x),
        1.5,
    ),
    "temperature of softmax_cross_entropy_with_teacher_logits": (
        lambda x: jl.softmax_cross_entropy_with_teacher_logits(Z, T, temperature=x),
        0.0,
    ),
    "alpha of entmax": (lambda x: jl.entmax(Z, alpha=x), 0.5),
    "alpha of entmax_loss": (lambda x: jl.entmax_loss(Z, T, alpha=x), 0.5),
    "alpha of entmax_loss_with_integer_labels": (
        lambda x: jl.entmax_loss_with_integer_labels(Z, Y, alpha=x),
        0.5,
    ),
    "cap of soft_cap": (lambda x: jl.soft_cap(Z, x), 0.0),
    "temperature of apply_temperature": (lambda x: jl.apply_temperature(Z, x), -1.0),
    "penalty of penalize_repetition": (lambda x: jl.penalize_repetition(X, Y, x), 0.0),
    "k of keep_top_k": (lambda x: jl.keep_top_k(Z, x.astype(int)), 0.0),
    "p of keep_top_p": (lambda x: jl.keep_top_p(Z, x), 1.5),
    "p of keep_min_p": (lambda x: jl.keep_min_p(Z, x), -0.5),
    "n of keep_top_n_sigma": (lambda x: jl.keep_top_n_sigma(Z, x), -0.5),
    "mass of keep_typical": (lambda x: jl.keep_typical(Z, x), 1.5),
    "epsilon of keep_epsilon": (lambda x: jl.keep_epsilon(Z, x), 1.5),
    "epsilon of keep_eta": (lambda x: jl.keep_eta(Z, x), -0.5),
    "temperature of sample": (lambda x: jl.sample(KEY, Z, temperature=x), -1.0),
    "temperature of sample_with_log_prob": (
        lambda x: jl.sample_with_log_prob(KEY, Z, temperature=x),
        -1.0,
    ),
    "temperature of speculative_sample": (
        lambda x: jl.speculative_sample(KEY, Y[:3], Z[:3], Z, temperature=x),
        -1.0,
    ),
    "temperature of gumbel_softmax": (lambda x: jl.gumbel_softmax(KEY, Z, temperature=x), 0.0),
    "temperature of linear_log_probs": (
        lambda x: jl.linear_log_probs(Z, T.T, Y, temperature=x),
        0.0,
    ),
    "temperature of linear_log_probs_and_entropy": (
        lambda x: jl.linear_log_probs_and_entropy(Z, T.T, Y, temperature=x),
        0.0,
    ),
    "temperature of linear_top_k": (lambda x: jl.linear_top_k(Z, T.T, 2, temperature=x), 0.0),
    "soft_cap of linear_log_probs": (lambda x: jl.linear_log_probs(Z, T.T, Y, soft_cap=x), 0.0),
    "temperature of linear_softmax_kl_divergence": (
        lambda x: jl.linear_softmax_kl_divergence(Z, T.T, Z, T.T, temperature=x),
        0.0,
    ),
    "coverage of conformal_threshold": (lambda x: jl.conformal_threshold(Z, Y, x), 1.5),
    "level of summarize": (lambda x: jl.summarize(H, level=x), 1.0),
    "l2 of fit_vector_scaling": (lambda x: jl.fit_vector_scaling(Z, Y, l2=x), -1.0),
    "l2 of fit_logistic": (lambda x: jl.fit_logistic(Z[:, :1], Y == 1, l2=x), -1.0),
    "l2 of fit_multinomial": (lambda x: jl.fit_multinomial(Z[:, :1], Y, 3, l2=x), -1.0),
    "tolerance of fit_logistic": (lambda x: jl.fit_logistic(Z[:, :1], Y == 1, tolerance=x), -1.0),
}


@pytest.mark.parametrize("kind", RANGES)
def test_a_traced_option_out_of_range_is_found(kind: str) -> None:
    """A known one is refused without ``checked``."""
    (option, function), (fn, bad) = kind.split(" of "), RANGES[kind]
    with pytest.raises(ValueError, match=rf"^{function}: {option} must be .*, got {bad:.2g}"):
        jl.checked(jax.jit(fn))(bad)


def test_an_option_for_each_row_is_found_in_its_row() -> None:
    temperature = jnp.array([1.0, 0.0, -1.0, -2.0])
    message = "apply_temperature: temperature must be at least 0, got -1.0 in row 2"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        jl.checked(jl.apply_temperature)(Z, temperature)


def test_of_several_bad_arguments_the_first_is_told() -> None:
    """And not what they make bad in the functions that are called with them."""
    loss = jl.checked(jax.jit(jl.sigmoid_binary_cross_entropy))
    for _ in range(3):
        with pytest.raises(ValueError, match=r"^sigmoid_binary_cross_entropy: logits must not be"):
            loss(jnp.full_like(X, NAN), X - 1)


def test_what_is_masked_is_not_looked_at() -> None:
    """Nor is there anything to see without rows."""
    loss = jl.checked(cross_entropy)
    bad = jnp.where(KEEP, Z, NAN).at[3].set(INF)
    assert loss(bad, jnp.array([0, 1, 2, -100]), where=KEEP)[3] == 0
    assert jl.checked(jl.softmax_cross_entropy)(bad, jnp.where(KEEP, T, -1.0), where=KEEP)[3] == 0
    np.testing.assert_array_equal(jl.checked(jl.softmax)(bad, where=KEEP)[3], [0, 0, 0])
    assert loss(jnp.zeros([0, 3]), jnp.zeros([0], int)).shape == (0,)
    rows = KEEP[:, 1]
    mean = jl.checked(jl.linear_softmax_cross_entropy)
    assert np.isfinite(mean(bad.at[0].set(0.0), T.T, jnp.array([0, 1, 2, -1]), where=rows))
    assert np.isfinite(jl.checked(jl.fit_platt)(jnp.array([0, 2, 1, NAN]), Y > 0, where=rows).slope)


@pytest.mark.parametrize(
    "fn",
    [
        jl.logsumexp,
        lambda z: jl.keep_top_k(z, 2),
        lambda z: jl.keep_min_p(z, 0.5),
        lambda z: jl.apply_temperature(z, 2.0),
    ],
)
def test_infinite_logits_that_mean_something_are_not_found(fn: Callable[..., Any]) -> None:
    fn = jl.checked(fn)
    fn(jnp.array([[INF, INF, 0.0], [-INF, -INF, -INF]]))
    with pytest.raises(ValueError, match=r"logits must not be NaN, got nan in row 1$"):
        fn(jnp.array([[INF, INF, 0.0], [-INF, NAN, -INF]]))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_place_on_a_mesh(kind: AxisType) -> None:
    """In a program that JAX splits, it is that in the whole array."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), (kind, kind))
    with jax.set_mesh(mesh):
        probs = jax.device_put(jnp.full([8, 4], 0.5).at[5, 2].set(-1.0), PartitionSpec("data"))
        with pytest.raises(ValueError, match=r"got -1.0 at \(5, 2\)$"):
            jl.checked(jax.jit(jl.logit))(probs)
        z = jax.device_put(jnp.zeros([8, 4]).at[5, 2].set(NAN), PartitionSpec("data", "model"))
        place = r"row 5$" if kind == AxisType.Auto else r"row 1 on device data=2, model=1$"
        with pytest.raises(
            ValueError, match=rf"^softmax: logits must not be NaN, got nan in {place}"
        ):
            jl.checked(jax.jit(jl.softmax))(z)


# What isn't computed.


def test_an_untaken_branch_is_not_looked_at() -> None:
    def fn(z: Any, y: Any) -> Any:
        return lax.cond(jnp.all(y < 3), lambda: cross_entropy(z, y), lambda: X)

    np.testing.assert_array_equal(jl.checked(fn)(Z, Y + 3), X)


def of_small(z: Any, y: Any) -> Any:
    return lax.cond(y < 3, lambda: jax.jit(cross_entropy)(z, y), lambda: 0.0)


def of_small_by_switch(z: Any, y: Any) -> Any:
    branches = [cross_entropy, lambda *_: 0.0, lambda z, y: -cross_entropy(z, y)]
    return lax.switch((y >= 3).astype(int), branches, z, y)


def of_masked_weights(z: Any, y: Any) -> Any:
    weights = jnp.where(y < 3, 1.0, -1.0) * jnp.ones([3])
    return lax.cond(y < 3, lambda: cross_entropy(z, y % 3, class_weights=weights), lambda: 0.0)


def until_the_end(z: Any, y: Any) -> Any:
    """Rows finish at different times."""

    def step(state: Any) -> Any:
        k, total = state
        return k + 1, total + cross_entropy(z, k)

    return lax.while_loop(lambda state: state[0] < jnp.minimum(y + 1, 3), step, (y * 0, 0.0))[1]


@pytest.mark.parametrize(
    "fn", [of_small, of_small_by_switch, of_masked_weights, until_the_end, jax.grad(of_small)]
)
def test_an_untaken_branch_is_not_looked_at_under_vmap(fn: Callable[..., Any]) -> None:
    """Although both branches are computed there, and loops go on for rows that have finished."""
    assert np.isfinite(jl.checked(jax.vmap(fn))(Z, Y + 1)).all()
    twice = jax.jit(jax.vmap(jax.vmap(fn)))
    assert np.isfinite(jl.checked(twice)(Z[None], Y[None] + 1)).all()


def test_a_taken_branch_is_looked_at_under_vmap() -> None:
    for fn in (of_small, jax.grad(of_small)):
        with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), got -1 in row 1$"):
            jl.checked(jax.vmap(fn))(Z, jnp.array([0, -1, 3, 1]))


def test_what_gives_a_finite_number_is_found_under_vmap() -> None:
    loss = jax.vmap(lambda z, y, w: cross_entropy(z, y, class_weights=w))
    weights = jnp.ones([4, 3]).at[2, 1].set(-1.0)
    assert np.isfinite(loss(Z, Y, weights)).all()
    with pytest.raises(ValueError, match=r"class_weights .*, got -1.0 for class \(2, 1\)$"):
        jl.checked(loss)(Z, Y, weights)
    loss = jax.vmap(lambda z, y, where: cross_entropy(z, y, where=where))
    with pytest.raises(ValueError, match=r"labels must be classes that where keeps"):
        jl.checked(loss)(Z, jnp.array([2, 1, 1, 3]), KEEP)


def test_results_without_numbers_hide_nothing_under_vmap() -> None:
    draw = jax.vmap(jl.sample)
    with pytest.raises(ValueError, match=r"^sample: logits must not be NaN, got nan in row 2$"):
        jl.checked(draw)(jax.random.split(KEY, 4), Z.at[2, 1].set(NAN))


# Called again, and by several threads.


@contextmanager
def compilations() -> Iterator[list[str]]:
    """What is compiled meanwhile."""
    events: list[str] = []

    def listen(event: str, *_: Any, **__: Any) -> None:
        if event.endswith("backend_compile_duration"):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("fn", [cross_entropy, jax.jit(jax.grad(total(focal)))])
def test_nothing_is_compiled_again(fn: Callable[..., Any]) -> None:
    jl.checked(fn)(Z, Y)
    bad = Y + 1
    with compilations() as events:
        for labels in (Y, bad, Y):
            checked = jl.checked(fn)
            for _ in range(2):
                if labels is bad:
                    with pytest.raises(ValueError, match="labels must be in"):
                        checked(Z, labels)
                else:
                    checked(Z, labels)
    assert not events


def test_each_of_several_threads_gets_its_own_verdict() -> None:
    checked = jl.checked(jax.jit(lambda z, y: jnp.sum(cross_entropy(z, y))))

    def verdict(number: int) -> str:
        try:
            checked(Z, Y.at[number % 4].set(3 + number) if number % 3 else Y)
        except ValueError as error:
            return str(error).partition(", got ")[2]
        return "good"

    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(verdict, range(400)))
    wanted = [f"{3 + i} in row {i % 4}" if i % 3 else "good" for i in range(400)]
    assert verdicts == wanted


# How it is called.


def test_checked_keeps_arguments_results_and_name() -> None:
    @jl.checked
    def named(z: Any, *, labels: Any) -> Any:
        """Words."""
        return {"loss": cross_entropy(z, labels)}

    assert (named.__name__, named.__doc__) == ("named", "Words.")
    assert named(Z, labels=Y)["loss"].shape == (4,)


def test_checked_passes_other_errors_on() -> None:
    checked = jl.checked(lambda z: cross_entropy(z, Y[:2]))
    with pytest.raises(ValueError, match="labels must have the shape"):
        checked(Z)
    assert jl.checked(cross_entropy)(Z, Y).shape == (4,)


def test_checked_says_why_jax_debug_nans_stopped() -> None:
    for fn in (cross_entropy, jax.vmap(cross_entropy)):
        checked = jl.checked(jax.jit(jax.grad(total(fn))))
        with jax.debug_nans(True):
            checked(Z, Y)
            with pytest.raises(
                ValueError, match=r"labels must be in .*, got 3 in row 2$"
            ) as raised:
                checked(Z, Y + 1)
        assert isinstance(raised.value.__cause__, FloatingPointError)


def test_checked_may_be_nested() -> None:
    checked = jl.checked(lambda z, y: jl.checked(cross_entropy)(z, y) + cross_entropy(z, y))
    assert checked(Z, Y).shape == (4,)
    with pytest.raises(ValueError, match="labels must be in"):
        checked(Z, Y + 1)


@pytest.mark.parametrize("stage", [jax.jit, jax.vmap], ids=["jit", "vmap"])
def test_checked_must_see_values(stage: Callable[..., Any]) -> None:
    staged = stage(jl.checked(cross_entropy))
    if stage is jax.jit:
        with pytest.raises(
            TypeError,
            match=re.escape("checked(fn) must be called on values: write checked(jit(fn))"),
        ):
            staged(Z, Y)
    else:
        with pytest.raises(ValueError, match="labels must be in"):
            staged(Z, Y + 1)


# Without ``checked`` nothing of it is in the program.


@pytest.mark.parametrize("kind", [*VIOLATIONS, *RANGES])
def test_normally_no_check_is_in_the_program(kind: str) -> None:
    fn, value = (VIOLATIONS | RANGES)[kind][:2]
    assert not jax.make_jaxpr(fn)(jnp.asarray(value)).effects


def test_it_exports_also_after_a_checked_call() -> None:
    fn, args = jax.jit(cross_entropy), (Z, Y)
    jl.checked(fn)(*args)
    exported = export.deserialize(export.export(fn)(*args).serialize())
    np.testing.assert_array_equal(exported.call(*args), fn(*args))


def test_a_check_is_in_the_program_inside_checked() -> None:
    """So that the two tests above can fail."""
    seen = []

    def fn(z: Any) -> Any:
        seen.append(jax.make_jaxpr(cross_entropy)(z, Y).effects)
        return z

    jl.checked(fn)(Z)
    assert seen[0]
