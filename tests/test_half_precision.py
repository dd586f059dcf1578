"""Half-precision logits that are computed in the same program are rounded once, for every reader.

Under jit XLA leaves out the rounding of a bfloat16 result that it fuses into what reads it. What a
function gives must still be its result for *some* rounded logits, the same in all of its parts:
those that an eager program would have seen or, after two operations, those rounded once at the end.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpret import interpreted
from jax import lax

import jaxlogits as jl

N, D = 16, 8

Function = Callable[[Any, Any], Any]  # of logits [N, K] and a label for each row


def of_logits(name: str, *args: Any, **options: Any) -> Function:
    return lambda z, _: getattr(jl, name)(z, *args, **options)


def of_two(name: str) -> Function:
    # Halves are exact, and no class is as likely in both, where total variation has a kink.
    return lambda z, _: getattr(jl, name)(z, lax.stop_gradient(0.5 * jnp.flip(z, axis=-1)))


def of_targets(name: str, **options: Any) -> Function:
    def fn(z: Any, labels: Any) -> Any:
        return getattr(jl, name)(z, jax.nn.one_hot(labels, z.shape[-1], dtype=z.dtype), **options)

    return fn


def of_key(name: str) -> Function:
    return lambda z, _: getattr(jl, name)(jax.random.key(0), z)


cross_entropy = jl.softmax_cross_entropy_with_integer_labels
# Adding a number to all logits of a row changes nothing, so that its gradient sums to 0.
INVARIANT: dict[str, Function] = {
    "softmax_cross_entropy_with_integer_labels": cross_entropy,
    "label_smoothing": lambda z, y: cross_entropy(z, y, label_smoothing=0.125),
    "softmax_cross_entropy": of_targets("softmax_cross_entropy"),
    "softmax_focal_loss_with_integer_labels": jl.softmax_focal_loss_with_integer_labels,
    "poly_loss_cross_entropy": of_targets("poly_loss_cross_entropy"),
    "entropy": of_logits("entropy"),
    "softmax_kl_divergence": of_two("softmax_kl_divergence"),
    "jensen_shannon_divergence": of_two("jensen_shannon_divergence"),
    "total_variation": of_two("total_variation"),
    "softmax_cross_entropy_with_teacher_logits": of_two(
        "softmax_cross_entropy_with_teacher_logits"
    ),
    "entmax_loss_with_integer_labels": jl.entmax_loss_with_integer_labels,
    "entmax_loss": of_targets("entmax_loss", alpha=1.25),
    "softmax": of_logits("softmax"),
    "log_softmax": of_logits("log_softmax"),
    "class_log_odds": of_logits("class_log_odds"),
    "sparsemax": of_logits("sparsemax"),
    "entmax": of_logits("entmax", alpha=1.25),
    "sample_with_log_prob": lambda z, _: jl.sample_with_log_prob(jax.random.key(0), z)[1],
    "gumbel_softmax": of_key("gumbel_softmax"),
    "aps_scores": of_logits("aps_scores"),
    "brier_score": jl.brier_score,
    "expected_calibration_error": jl.expected_calibration_error,
    "masked": lambda z, y: cross_entropy(z, y, where=jnp.arange(z.shape[-1])[None] != 1),
}
OTHERS: dict[str, Function] = {
    "logsumexp": of_logits("logsumexp"),
    "z_loss": lambda z, y: cross_entropy(z, y, z_loss=0.125),
    "apply_temperature": of_logits("apply_temperature", 0.75),
    "soft_cap": of_logits("soft_cap", 30.0),
    "keep_top_k": of_logits("keep_top_k", 3),
    "keep_top_p": of_logits("keep_top_p", 0.75),
    "keep_min_p": of_logits("keep_min_p", 0.125),
    "keep_top_n_sigma": of_logits("keep_top_n_sigma", 1.0),
    "keep_typical": of_logits("keep_typical", 0.75),
    "keep_epsilon": of_logits("keep_epsilon", 0.0625),
    "keep_eta": of_logits("keep_eta", 0.0625),
    "sample": of_key("sample"),
}
FUNCTIONS = INVARIANT | OTHERS

# XLA fuses rows of up to 16 classes otherwise than longer ones.
SOME = ("softmax_cross_entropy_with_integer_labels", "softmax_cross_entropy", "softmax", "entropy")
CASES = [(name, 20, jnp.bfloat16) for name in FUNCTIONS] + [
    (name, num_classes, dtype)
    for name in SOME
    for num_classes, dtype in ((5, jnp.bfloat16), (100, jnp.bfloat16), (20, jnp.float16))
]


class Arrays(NamedTuple):
    hidden: Any  # [N, D]
    kernel: Any  # [D, K]
    bias: Any  # [N, K]
    logits: Any  # [N, K]


def arrays(num_classes: int, dtype: Any) -> Arrays:
    """In half precision; all are multiples of 1/32, so that products have no rounding error."""
    rng = np.random.default_rng(num_classes)
    shapes = {"hidden": (N, D), "kernel": (D, num_classes)}
    shapes |= {"bias": (N, num_classes), "logits": (N, num_classes)}
    steps = {"hidden": 32, "kernel": 32, "bias": 128, "logits": 128}
    return Arrays(
        **{
            name: jnp.asarray(rng.integers(-steps[name], steps[name], shape) / 32, dtype)
            for name, shape in shapes.items()
        }
    )


def layer_rounded_once(bias: Any, x: Arrays) -> Any:
    product = x.hidden.astype(jnp.float32) @ x.kernel.astype(jnp.float32)
    return (product + bias.astype(jnp.float32)).astype(bias.dtype)


class Producer(NamedTuple):
    """How logits are made, as a function of one array among the others."""

    make: Callable[[Any, Arrays], Any]
    of: str  # the array
    slope: float  # of the logits in it
    seen: tuple[Callable[[Any, Arrays], Any], ...]  # what its reader may have seen, eagerly


def scaled(z: Any, _: Arrays) -> Any:
    return z * jnp.asarray(0.25 + 2.0**-7, z.dtype)


def residual(bias: Any, x: Arrays) -> Any:
    return x.logits + bias


def layer(bias: Any, x: Arrays) -> Any:
    return x.hidden @ x.kernel + bias


PRODUCERS = (
    Producer(scaled, "logits", 0.25 + 2.0**-7, (scaled,)),
    Producer(residual, "bias", 1.0, (residual,)),
    Producer(layer, "bias", 1.0, (layer, layer_rounded_once)),
)


def number(fn: Function, z: Any, labels: Any) -> Any:
    """One number of the finite results, which tells rows and classes apart, and the results."""
    result = fn(z, labels)
    if not jnp.issubdtype(result.dtype, jnp.floating):
        return jnp.float32(0), result
    wide = result.astype(jnp.float32)
    # Multiples of 1/64: numbers of any dtype here, so that only results are rounded.
    weights = jnp.round(64 * jnp.cos(jnp.arange(result.size, dtype=jnp.float32))) / 64
    weights = weights.reshape(result.shape)
    return jnp.sum(jnp.where(jnp.isfinite(wide), wide, 0.0) * weights), result


def results_and_gradient(fn: Function, make: Any, at: Any, labels: Any) -> tuple[Any, Any]:
    (_, results), gradient = jax.value_and_grad(
        lambda at: number(fn, make(at), labels), has_aux=True
    )(at)
    return results, gradient


@pytest.mark.parametrize(("name", "num_classes", "dtype"), CASES)
def test_logits_of_the_same_program(name: str, num_classes: int, dtype: Any) -> None:
    fn = FUNCTIONS[name]
    given = [(p, arrays(num_classes, dtype)) for p in PRODUCERS]
    seen = [jnp.stack([make(getattr(x, p.of), x) for make in p.seen]) for p, x in given]
    labels = [jnp.argmax(z[0], axis=-1) for z in seen]

    @jax.jit
    def fused(xs: list[Arrays], labels: list[Any]) -> Any:
        return [
            results_and_gradient(fn, lambda at, p=p, x=x: p.make(at, x), getattr(x, p.of), y)
            for (p, _), x, y in zip(given, xs, labels, strict=True)
        ]

    @interpreted
    def apart(z: Any, labels: Any) -> Any:
        return jax.vmap(lambda z, y: results_and_gradient(fn, lambda z: z, z, y))(z, labels)

    counts = [len(z) for z in seen]
    wide = jnp.concatenate([z.astype(jnp.float32) for z in seen])
    of_each = [jnp.broadcast_to(y, (n, N)) for y, n in zip(labels, counts, strict=True)]
    wanted = apart(wide, jnp.concatenate(of_each))
    starts = np.cumsum([0, *counts[:-1]])
    got = fused([x for _, x in given], labels)
    for (p, _), (results, gradient), start, count in zip(given, got, starts, counts, strict=True):
        wants = [[x[start + i] for x in wanted] for i in range(count)]
        errors = [
            max(error(results, want[0]), error(gradient, p.slope * want[1])) for want in wants
        ]
        assert min(errors) <= 1, (p.make.__name__, gradient.dtype, errors)
        if name in INVARIANT:
            # Each of the numbers is rounded, once or, scaled, twice.
            g = np.asarray(gradient, float)
            allowed = float(jnp.finfo(gradient.dtype).eps) * np.sum(abs(g), axis=-1) + 1e-6
            assert np.all(abs(np.sum(g, axis=-1)) <= allowed), p.make.__name__


BESIDE: dict[str, Callable[..., Any]] = {
    "hidden": lambda x, z, y: jl.linear_softmax_cross_entropy(x, z[:20], y, reduction="none"),
    "hidden in blocks": lambda x, z, y: jl.linear_log_probs(x, z[:20], y, block_size=4),
    "bias": lambda x, z, y: jl.linear_log_probs(z, z.T[:, :16], y, bias=x[0, :16]),
    "temperature": lambda x, z, _: jl.apply_temperature(z, x[:, 0]),
    "temperature of a head": lambda x, z, y: jl.linear_log_probs(z, z.T, y, temperature=x[:, 0]),
    "cap": lambda x, z, _: jl.soft_cap(z, x[:, 0]),
    "priors": lambda x, z, _: jl.adjust_prior(z, x[0], x[1]),
    "class weights": lambda x, z, y: cross_entropy(z, y, class_weights=x[0]),
    "weights": lambda x, z, y: jl.brier_score(z, y, weights=x[:, 0]),
    "targets": lambda x, z, _: jl.softmax_cross_entropy(z, x),
}


@pytest.mark.parametrize("name", BESIDE)
def test_half_precision_beside_float32(name: str) -> None:
    """What isn't logits is rounded as its dtype says, too, before it meets wider numbers."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(20, 20)), jnp.float32)
    x = jnp.asarray(rng.uniform(0.5, 2.0, size=(20, 20)), jnp.bfloat16)
    labels = jnp.asarray(rng.integers(16, size=20), jnp.int32)
    scale = jnp.asarray(0.25 + 2.0**-7, jnp.bfloat16)
    got = jax.jit(lambda x: BESIDE[name](x * scale, logits, labels))(x)
    want = BESIDE[name](x * scale, logits, labels)
    # Of a sum in float32; without its rounding, x is 2^-9 of itself off.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def error(got: Any, want: Any) -> float:
    """The largest distance, in units of what a sum in float32 and one rounding of it may be off."""
    got_, want_ = np.asarray(got, float), np.asarray(want, float)
    if not jnp.issubdtype(got.dtype, jnp.floating):
        return float(np.max(got_ != want_)) * np.inf if np.any(got_ != want_) else 0.0
    finite = np.isfinite(want_)
    if not np.array_equal(got_[~finite], want_[~finite], equal_nan=True):
        return np.inf
    got_, want_ = got_[finite], want_[finite]
    eps = float(jnp.finfo(got.dtype).eps)
    rounding = 1.5 * eps if eps > 1e-4 else 0.0  # three of them: see ``scaled``
    allowed = 1e-5 * np.max(abs(want_), initial=1e-3) + rounding * abs(want_)
    return float(np.max(abs(got_ - want_) / allowed, initial=0.0))


# Rows with infinities and NaN, whose derivatives are those of the same numbers in float32.


@pytest.mark.parametrize("num_classes", [4, 40, 900])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "class_log_odds"])
def test_derivatives_of_special_rows(name: str, dtype: Any, num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    z = rng.normal(size=[9, num_classes])
    z[1, 0], z[2, :2], z[3], z[4, 1] = np.inf, np.inf, -np.inf, np.nan
    z[5], z[6, 1:], z[7, 0], z[8, 2] = 1.0, -np.inf, 300.0, -np.inf
    weights, along = (jnp.asarray(rng.normal(size=z.shape), jnp.float32) for _ in range(2))

    def of(z: jax.Array) -> jax.Array:
        result = getattr(jl, name)(z).astype(jnp.float32)
        return jnp.sum(weights * (result if result.ndim == 2 else result[:, None]))

    def derivatives(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(jax.grad(of), (z,), (along.astype(z.dtype),))

    narrow = jnp.asarray(z, dtype)
    got, want = jax.jit(derivatives)(narrow), jax.jit(derivatives)(narrow.astype(jnp.float32))
    rounding = float(jnp.finfo(dtype).eps)  # of a result, and of what is summed to it
    for result, exact in zip(got, want, strict=True):
        finite = np.abs(exact[np.isfinite(exact)])
        np.testing.assert_allclose(
            result.astype(jnp.float32), exact, rtol=4 * rounding, atol=4 * rounding * finite.max()
        )
