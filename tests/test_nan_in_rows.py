"""NaN in a row shows in all that comes of it, however many rows and classes there are.

A maximum needn't say so: jax.numpy's of float32, in programs for CPUs, has left NaN out since JAX
0.12, and minima within a sum likewise, from some size on. Each row is compared with itself alone.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlogits as jl

INF, NAN = np.inf, np.nan
KEY = jax.random.key(0)
SPECIAL = 14  # rows at the beginning, one of each kind


def rows(num_rows: int, num_classes: int, dtype: Any) -> jax.Array:
    z = np.random.default_rng(0).normal(scale=2.0, size=(num_rows, num_classes))
    last, greatest = num_classes - 1, float(jnp.finfo(dtype).max)
    for row, entries in enumerate(
        [
            {last // 3: NAN},
            {0: NAN},
            {last: NAN},
            {1: INF, 3: NAN},
            {1: -INF, last: NAN},
            {1: greatest, 3: NAN},
            {1: INF},
            {1: INF, last: INF},
            {1: INF, 2: greatest},
            {1: -INF},
        ]
    ):
        z[row, list(entries)] = list(entries.values())
    z[10], z[11], z[12], z[13] = NAN, -INF, -INF, -INF
    z[12, 4], z[13, 4] = NAN, 1.0
    return jnp.asarray(z, dtype)


def _gradient(loss: Callable[..., Any]) -> Callable[..., Any]:
    return lambda z, *args: jax.grad(lambda z: jnp.sum(loss(z, *args).astype(jnp.float32)))(z)


def _eye(z: Any) -> Any:
    return jnp.eye(z.shape[-1], dtype=z.dtype)


def _head(loss: Callable[..., Any], memory: Any) -> Callable[..., Any]:
    def run(z: Any, other: Any, labels: Any, targets: Any) -> Any:
        del other, targets
        return loss(z, _eye(z), labels, memory=memory)

    return run


CALLS: dict[str, Callable[..., Any]] = {
    # Of logits, other logits, labels and targets.
    "softmax": lambda z, *_: jl.softmax(z),
    "log_softmax": lambda z, *_: jl.log_softmax(z),
    "logsumexp": lambda z, *_: jl.logsumexp(z),
    "class_log_odds": lambda z, *_: jl.class_log_odds(z),
    "entropy": lambda z, *_: jl.entropy(z),
    "sparsemax": lambda z, *_: jl.entmax(z, alpha=2.0),
    "entmax": lambda z, *_: jl.entmax(z),
    "integer labels": lambda z, _, y, __: jl.softmax_cross_entropy_with_integer_labels(z, y),
    "all options": lambda z, _, y, __: jl.softmax_cross_entropy_with_integer_labels(
        z, y, label_smoothing=0.1, z_loss=0.01
    ),
    "targets": lambda z, _, __, t: jl.softmax_cross_entropy(z, t),
    "focal": lambda z, _, y, __: jl.softmax_focal_loss_with_integer_labels(z, y),
    "poly": lambda z, _, __, t: jl.poly_loss_cross_entropy(z, t),
    "entmax loss": lambda z, _, y, __: jl.entmax_loss_with_integer_labels(z, y),
    "student": lambda z, other, *_: jl.softmax_cross_entropy_with_teacher_logits(z, other),
    "teacher": lambda z, other, *_: jl.softmax_cross_entropy_with_teacher_logits(other, z),
    "p of KL": lambda z, other, *_: jl.softmax_kl_divergence(z, other),
    "q of KL": lambda z, other, *_: jl.softmax_kl_divergence(other, z),
    "jensen shannon": lambda z, other, *_: jl.jensen_shannon_divergence(z, other),
    "total variation": lambda z, other, *_: jl.total_variation(z, other),
    "keep_top_k": lambda z, *_: jl.keep_top_k(z, 5),
    "keep_top_p": lambda z, *_: jl.keep_top_p(z, 0.9),
    "keep_min_p": lambda z, *_: jl.keep_min_p(z, 0.1),
    "keep_typical": lambda z, *_: jl.keep_typical(z, 0.9),
    "keep_epsilon": lambda z, *_: jl.keep_epsilon(z, 0.01),
    "keep_eta": lambda z, *_: jl.keep_eta(z, 0.01),
    "keep_top_n_sigma": lambda z, *_: jl.keep_top_n_sigma(z, 1.0),
    "kept_log_probs": lambda z, _, y, __: jl.kept_log_probs(
        z, y, jnp.broadcast_to(jnp.arange(z.shape[1]), z.shape)
    ),
    "temperature": lambda z, *_: jl.apply_temperature(z, 0.7),
    "adjust_prior": lambda z, _, __, t: jl.adjust_prior(z, *2 * [jnp.full_like(t[0], 0.5)]),
    "aps_scores": lambda z, *_: jl.aps_scores(z),
    "verified drafts": jax.vmap(
        lambda z, other, y, _: jnp.where(
            jl.speculative_sample(KEY, y[None], other[None], jnp.stack([z, z]))[0] < 0, NAN, 0.0
        )
    ),
    "gumbel_softmax": lambda z, *_: jl.gumbel_softmax(KEY, z),
    "no order": lambda z, *_: jnp.where(jl.sample_without_replacement(KEY, z, 3) < 0, jnp.nan, 0.0),
    "no class": lambda z, *_: jnp.where(jl.sample(KEY, z) < 0, jnp.nan, 0.0),
    "log prob": lambda z, *_: jl.sample_with_log_prob(KEY, z)[1],
    "head": _head(jl.linear_log_probs, "rows"),
    "head in tiles": _head(jl.linear_log_probs, "tiles"),
    "entropy of a head": lambda z, _, y, __: jl.linear_log_probs_and_entropy(z, _eye(z), y)[1],
    "top k of a head": lambda z, *_: jl.linear_top_k(z, _eye(z), 3)[0],
    "KL of heads": lambda z, other, *_: jl.linear_softmax_kl_divergence(
        z, _eye(z), other, _eye(z), reduction="none"
    ),
}
for _name in ("softmax", "log_softmax", "logsumexp", "integer labels", "targets", "p of KL"):
    CALLS[f"gradient of {_name}"] = _gradient(CALLS[_name])


@pytest.mark.optimized
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((64, 800), jnp.float32),
        ((4096, 12), jnp.float32),
        ((4096, 12), jnp.bfloat16),
    ],
    ids=lambda x: str(x) if isinstance(x, tuple) else x.__name__,
)
@pytest.mark.parametrize("name", CALLS)
def test_nan_is_that_of_the_row_alone(name: str, shape: tuple[int, int], dtype: Any) -> None:
    if "head" in name and shape[0] > 64:
        shape = (64, shape[1])
    rng = np.random.default_rng(1)
    other = jnp.asarray(rng.normal(size=shape), dtype)
    labels = jnp.asarray(rng.integers(0, shape[1], shape[0]))
    targets = jax.nn.softmax(jnp.asarray(rng.normal(size=shape), dtype))
    args = rows(*shape, dtype), other, labels, targets
    call = jax.jit(CALLS[name])
    together = np.isnan(np.asarray(call(*args)[:SPECIAL], np.float32))
    for row, got in enumerate(together):
        alone = call(*(x[row : row + 1] for x in args))
        np.testing.assert_array_equal(got, np.isnan(np.asarray(alone, np.float32))[0], f"row {row}")
    assert together[0].any()


LOG_ODDS = ("softplus", "log_sigmoid", "sigmoid", "logit", "log1mexp")
ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "soft_cap": lambda z, _: jl.soft_cap(z, 5.0),
    "cross entropy": jl.sigmoid_binary_cross_entropy,
    "focal": jl.sigmoid_focal_loss,
}


@pytest.mark.optimized
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", [*LOG_ODDS, *ELEMENTWISE])
def test_nan_is_in_the_mean(name: str, dtype: Any) -> None:
    fn = ELEMENTWISE.get(name) or (lambda z, _: getattr(jl, name)(z))
    z = jnp.full([64, 400], 0.5, dtype).at[0, 7].set(jnp.nan)
    means = jax.jit(lambda z, t: fn(z, t).mean(axis=1))(z, jnp.full_like(z, 0.25))
    np.testing.assert_array_equal(jnp.isnan(means), np.arange(64) == 0)


@pytest.mark.optimized
@pytest.mark.parametrize("name", ["expected", "maximum", "classwise"])
def test_calibration_errors(name: str) -> None:
    z, labels = rows(64, 400, jnp.float32), jnp.arange(64)
    error = getattr(jl, f"{name}_calibration_error")
    assert jnp.isnan(error(z, labels))
    # Rows of weight 0 don't exist.
    weights = jnp.where(jnp.arange(64) < SPECIAL, 0.0, 1.0)
    want = error(z[SPECIAL:], labels[SPECIAL:])
    np.testing.assert_allclose(error(z, labels, weights=weights), want, rtol=1e-6)
