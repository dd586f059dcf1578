"""Calls of public functions at any shape, and of their peers: what several benchmarks measure.

Whatever is missing in an older commit fails when it is called, not when this is imported, so that
``compare.py`` can ask commits of other ages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxlogits as jl

Function = Callable[..., Any]
TOP_P, TOP_K, CAP = 0.9, 40, 30.0
FEATURES = 64  # of a linear head, unless the benchmark says how many


class Case(NamedTuple):
    """A function, what its arguments are, and its peer."""

    name: str
    args: str  # names of `arrays`
    peer: Function | None = None
    is_map: bool = False  # one number for each class, of which nobody takes the mean
    has_gradient: bool = True
    call: Function | None = None  # if it takes more than the arguments

    def ours(self, *args: Any) -> Any:
        """The library's function."""
        return (self.call or getattr(jl, self.name))(*args)


# What people write where jax and optax have no function.


def kl_divergence(logits_p: Any, logits_q: Any) -> Any:
    """As optax has it; it takes no logits."""
    return optax.kl_divergence(jax.nn.log_softmax(logits_q), jax.nn.softmax(logits_p))


def by_teacher(logits: Any, teacher: Any) -> Any:
    return optax.softmax_cross_entropy(logits, jax.nn.softmax(teacher))


def entropy(logits: Any) -> Any:
    return -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), axis=-1)


def top_p_by_sort(logits: Any) -> Any:
    """The threshold is the smallest logit that the cumulative sum of the sorted ones leaves."""
    rising = jnp.sort(logits, axis=-1)
    cut = jnp.cumsum(jax.nn.softmax(rising, axis=-1), axis=-1) <= 1.0 - TOP_P
    cut = cut.at[..., -1].set(False)
    threshold = jnp.min(jnp.where(cut, jnp.inf, rising), axis=-1, keepdims=True)
    return jnp.where(logits >= threshold, logits, -jnp.inf)


def top_k_by_sort(logits: Any) -> Any:
    threshold = jax.lax.top_k(logits, min(TOP_K, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits >= threshold, logits, -jnp.inf)


def gumbel_softmax(key: Any, logits: Any) -> Any:
    return jax.nn.softmax(logits + jax.random.gumbel(key, logits.shape, logits.dtype))


def without_replacement(key: Any, logits: Any) -> Any:
    noisy = logits + jax.random.gumbel(key, logits.shape, logits.dtype)
    return jax.lax.top_k(noisy, min(TOP_K, logits.shape[-1]))[1]


def head_of_logits(hidden: Any, kernel: Any, labels: Any) -> Any:
    losses = optax.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels)
    return losses.astype(jnp.float32).mean()


def log_probs_of_logits(hidden: Any, kernel: Any, labels: Any) -> Any:
    return -optax.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels)


def top_k_of_logits(hidden: Any, kernel: Any) -> Any:
    log_probs = jax.nn.log_softmax(hidden @ kernel)
    return jax.lax.top_k(log_probs, min(TOP_K, kernel.shape[-1]))


def _least(x: Any) -> int:
    return min(TOP_K, x.shape[-1])


def _map(name: str, args: str, peer: Function | None, **fields: Any) -> Case:
    return Case(name, args, peer, is_map=True, **fields)


def _choice(name: str, args: str, peer: Function | None, call: Function | None = None) -> Case:
    return Case(name, args, peer, has_gradient=False, call=call)


CASES = [
    _map("logit", "probs", jax.scipy.special.logit),
    _map("sigmoid", "logits", jax.nn.sigmoid),
    _map("log_sigmoid", "logits", jax.nn.log_sigmoid),
    _map("softplus", "logits", jax.nn.softplus),
    _map("log1mexp", "positive", jax.nn.log1mexp),
    _map("softmax", "logits", jax.nn.softmax),
    _map("log_softmax", "logits", jax.nn.log_softmax),
    Case("logsumexp", "logits", lambda z: jax.nn.logsumexp(z, axis=-1)),
    _map("sparsemax", "logits", jax.vmap(optax.projections.projection_simplex)),
    _map(
        "soft_cap", "logits", lambda z: CAP * jnp.tanh(z / CAP), call=lambda z: jl.soft_cap(z, CAP)
    ),
    Case("sigmoid_binary_cross_entropy", "logits binary", optax.sigmoid_binary_cross_entropy),
    Case("sigmoid_focal_loss", "logits binary", optax.sigmoid_focal_loss),
    Case(
        "softmax_cross_entropy_with_integer_labels",
        "logits labels",
        optax.softmax_cross_entropy_with_integer_labels,
    ),
    Case("softmax_cross_entropy", "logits targets", optax.softmax_cross_entropy),
    Case("poly_loss_cross_entropy", "logits targets", optax.losses.poly_loss_cross_entropy),
    Case("softmax_cross_entropy_with_teacher_logits", "logits other", by_teacher),
    Case("softmax_kl_divergence", "logits other", kl_divergence),
    Case("jensen_shannon_divergence", "logits other"),
    Case("entropy", "logits", entropy),
    _choice("sample", "key logits", jax.random.categorical),
    _choice("sample_with_log_prob", "key logits", None),
    _choice(
        "sample_without_replacement",
        "key logits",
        without_replacement,
        lambda key, z: jl.sample_without_replacement(key, z, _least(z)),
    ),
    _map("gumbel_softmax", "key logits", gumbel_softmax),
    _choice("keep_top_p", "logits", top_p_by_sort, lambda z: jl.keep_top_p(z, TOP_P)),
    _choice("keep_top_k", "logits", top_k_by_sort, lambda z: jl.keep_top_k(z, TOP_K)),
    _choice("keep_typical", "logits", None, lambda z: jl.keep_typical(z, TOP_P)),
    _choice("keep_min_p", "logits", None, lambda z: jl.keep_min_p(z, 0.1)),
    Case("linear_softmax_cross_entropy", "hidden kernel labels", head_of_logits),
    Case("linear_log_probs", "hidden kernel labels", log_probs_of_logits),
    _choice(
        "linear_top_k",
        "hidden kernel",
        top_k_of_logits,
        lambda h, w: jl.linear_top_k(h, w, _least(w)),
    ),
]
BY_NAME = {case.name: case for case in CASES}


def arrays(
    names: str, rows: int, classes: int, dtype: str = "float32", features: int = FEATURES
) -> list[Any]:
    """Random arguments by name, the same ones in every process.

    Labels are those of a model that is right for half of the rows.
    """
    rng = np.random.default_rng(0)
    shape = (rows, classes)
    found: dict[str, Any] = {}
    for name in names.split():
        if name == "key":
            found[name] = jax.random.key(0)
            continue
        x: Any
        if name == "probs":
            x = rng.random(shape, np.float32)
        elif name == "positive":
            x = np.abs(3 * rng.standard_normal(shape, np.float32))
        elif name == "binary":
            x = (rng.random(shape, np.float32) < 0.5).astype(np.float32)
        elif name == "targets":
            x = np.exp(rng.standard_normal(shape, np.float32))
            x /= x.sum(axis=-1, keepdims=True)
        elif name == "labels":
            x = rng.integers(classes, size=rows).astype(np.int32)
            if "logits" in found:
                x[::2] = np.asarray(found["logits"][::2]).argmax(axis=-1)
        elif name == "hidden":
            x = rng.standard_normal((rows, features), np.float32)
        elif name == "kernel":
            x = rng.standard_normal((features, classes), np.float32) * (3 / features**0.5)
        else:
            x = 3 * rng.standard_normal(shape, np.float32)
        found[name] = jnp.asarray(x, "int32" if name == "labels" else dtype)
    return list(found.values())


def gradient(case: Case, fn: Function) -> Function:
    """Value and gradient of the mean, as it is trained with; of the mean square of a map."""

    def number(*args: Any) -> Any:
        result = fn(*args).astype(jnp.float32)
        return jnp.square(result).mean() if case.is_map else result.mean()

    of = [i for i, name in enumerate(case.args.split()) if name in ("kernel", "hidden")]
    first = [i for i, name in enumerate(case.args.split()) if name not in ("key", "labels")][:1]
    return jax.value_and_grad(number, argnums=tuple(of or first))


def programs(case: Case, fn: Function) -> dict[str, Function]:
    """What is measured of a function, by name."""
    found = {"value": fn}
    if case.has_gradient:
        found["gradient"] = gradient(case, fn)
    return found
