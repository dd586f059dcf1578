"""Every public function, once: how it is called and what it gives. The suites read this.

Whoever adds a function adds one entry to ``CASES``, and its float64 oracle to ``references.py``.
Everything is numpy, so that importing this file compiles nothing; keys are made when they're used.
"""

import dataclasses
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import references

import jaxlogits as jl

NONE: Mapping[str, Any] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Case:
    """One public function and valid calls of it. Arguments are passed by name."""

    name: str
    args: Mapping[str, Any]  # that every call has; floating-point ones are differentiated
    where: Any = None  # a mask, if the function has one
    masked: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # what goes with it, in place of those above
    infinite: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # arguments at valid infinities, in place of those above
    optional: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # arrays that may be left out
    # Numbers: the one that switches something off or is usual, and two more.
    options: Mapping[str, tuple[Any, Any, Any]] = dataclasses.field(default_factory=dict)
    static: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    oracle: Callable[..., Any] | None = None  # None for what is drawn, and for transforms
    peer: Callable[..., Any] | None = None  # of ``args``, by position, in jax.nn or optax
    call: Callable[..., Any] | None = None  # if the arguments aren't the function's own
    fixed: tuple[str, ...] = ()  # floating-point arguments without a derivative
    rtol: float = 1e-5  # of float32 results and the largest of their numbers

    def __call__(self, **args: Any) -> Any:
        return (self.call or getattr(jl, self.name))(**args, **self.static)

    @property
    def calls(self) -> dict[str, dict[str, Any]]:
        """Arguments of valid calls: as few as can be, these at infinities, and all there are."""
        usual = {name: values[0] for name, values in self.options.items()}
        calls = {"plain": {**self.args, **usual}}
        if self.infinite:
            calls["infinite"] = {**self.args, **usual, **self.infinite}
        if self.options or self.optional or self.where is not None:
            other = {name: values[1] for name, values in self.options.items()}
            mask = {} if self.where is None else {"where": self.where, **self.masked}
            calls["full"] = {**self.args, **self.optional, **other, **mask}
        return calls

    def differentiable(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the arguments that have a derivative."""
        return {
            name: x
            for name, x in args.items()
            if getattr(x, "dtype", None) == np.float32 and name not in self.fixed
        }

    def exact(self, call: str) -> Any:
        """What the oracle says of one of the calls."""
        assert self.oracle is not None
        given = self.calls[call]
        static = {k: v for k, v in self.static.items() if k in _names(self.oracle)}
        args = {k: v for k, v in given.items() if k != "key"}
        return self.oracle(**args, **static)


def _names(fn: Callable[..., Any]) -> Any:
    return inspect.signature(fn).parameters


def on_device(args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with JAX's arrays for numpy's."""
    return {k: jnp.asarray(x) if isinstance(x, np.ndarray) else x for k, x in args.items()}


def floats(result: Any) -> list[Any]:
    """The floating-point arrays of a result."""
    return [x for x in jax.tree.leaves(result) if jnp.issubdtype(x.dtype, jnp.floating)]


def value_and_gradients(case: Case, args: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The result, and the gradients of the sum of all that is floating point in it."""
    at = case.differentiable(args)

    def of(at: dict[str, Any]) -> tuple[list[Any], Any]:
        result = case(**{**args, **at})
        return floats(result), result

    results, pullback, result = jax.vjp(of, at, has_aux=True)
    if not at or not results:
        return result, {}
    return result, pullback([jnp.ones_like(x) for x in results])[0]


# The arguments. Four rows of five classes.

N, K, D = 4, 5, 3
RNG = np.random.default_rng(0)


def normal(*shape: int, scale: float = 2.0) -> np.ndarray:
    return (scale * RNG.normal(size=shape)).astype(np.float32)


def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    return RNG.uniform(low, high, shape).astype(np.float32)


LOGITS, OTHER = normal(N, K), normal(N, K)
LABELS = np.array([0, 3, 2, 4], np.int32)
TARGETS = references.softmax(normal(N, K)).astype(np.float32)
# Every row but the last has its label, and the last has no class at all.
WHERE = np.array([[1, 1, 0, 1, 1], [0, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0] * K], bool)
ROWS = np.array([True, True, False, True])
REMOVED = np.where(np.array([[0, 1, 0, 0, 1]] * 3 + [[1, 1, 1, 1, 0]], bool), -np.inf, LOGITS)
X, Y = normal(N, K), uniform(N, K)
SURE = np.array([[-np.inf, np.inf, 0.5, -40.0, 40.0]] * N, np.float32)
MATCHING = np.array([[0.0, 1.0, 0.25, 0.0, 1.0]] * N, np.float32)
# Every row's label and some others, and one padding.
RECORDED = np.array([[0, 1, 3, -1], [4, 3, 1, -1], [2, 0, 4, -1], [4, 4, 2, -1]], np.int32)
HIDDEN, KERNEL, BIAS = normal(N, D), normal(D, K, scale=1.0), normal(K)
WEIGHTS = uniform(N, low=0.5, high=1.5)
WARMTH = np.linspace(0.5, 2.0, N, dtype=np.float32)
BY_CLASS = uniform(K, low=0.5, high=1.5)

# Twelve rows for calibration and fits, of which none is perfect: every third label is another.
MANY = normal(12, 3)
GUESSED = np.argmax(MANY, axis=1).astype(np.int32)
TRUE = np.where(np.arange(12) % 3 == 0, (GUESSED + 1) % 3, GUESSED).astype(np.int32)
COUNTED = np.arange(12) != 7
IMPORTANCE = uniform(12, low=0.5, high=1.5)
POSSIBLE = np.where((np.arange(3) == 0) & (TRUE == 1)[:, None], -np.inf, MANY)
FEATURES = np.concatenate([np.ones([12, 1], np.float32), normal(12, 1, scale=1.0)], axis=1)
YES = (np.arange(12) % 4 < 2).astype(np.float32)
COEFFICIENTS = np.array([0.5, -1.5], np.float32)
COVARIANCE = np.array([[0.5, 0.1], [0.1, 0.75]], np.float32)


# Kinds of entries.


def of_numbers(name: str, argument: str, x: Any, infinite: Any, peer: Any) -> Case:
    """An elementwise function of one argument."""
    return Case(
        name,
        {argument: x},
        infinite={argument: infinite.astype(np.float32)},
        oracle=lambda **args: getattr(references, name)(*args.values()),
        peer=peer,
    )


def of_rows(name: str, *, logits: str = "logits", **fields: Any) -> Case:
    """A function of logits and what belongs to them."""
    args = {logits: LOGITS, **fields.pop("args", NONE)}
    infinite = {logits: REMOVED.astype(np.float32), **fields.pop("infinite", NONE)}
    fields = {"where": WHERE, "oracle": getattr(references, name, None), **fields}
    return Case(name, args, infinite=infinite, **fields)


def of_pairs(name: str, **fields: Any) -> Case:
    removed = REMOVED.astype(np.float32)
    other = np.where(np.isinf(removed), removed, OTHER)
    more = {"args": {"logits_q": OTHER}, "infinite": {"logits_q": other}}
    return of_rows(name, logits="logits_p", **more, **fields)


def drawn(name: str) -> Callable[..., Any]:
    def call(**args: Any) -> Any:
        return getattr(jl, name)(jax.random.wrap_key_data(args.pop("key")), **args)

    return call


def of_draws(name: str, **fields: Any) -> Case:
    key = {"key": np.array([0, 7], np.uint32)}
    # The log probability of a draw from no class is NaN.
    return of_rows(
        name, args=key, call=drawn(name), oracle=None, where=WHERE[2::-1][[0, 1, 2, 0]], **fields
    )


def of_heads(name: str, **fields: Any) -> Case:
    args = {"hidden": HIDDEN, "kernel": KERNEL, "labels": LABELS, "bias": BIAS}
    return Case(name, args, oracle=getattr(references, name), **fields)


def per_row(kernel: Any, hidden: Any, labels: Any) -> Any:
    """A loss for the transforms that take one."""
    return jl.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels)


def of_blocks(name: str, **fields: Any) -> Case:
    def call(kernel: Any, hidden: Any, labels: Any, **options: Any) -> Any:
        return getattr(jl, name)(per_row, block_size=3)(kernel, hidden, labels, **options)

    args = {"kernel": KERNEL, "hidden": HIDDEN, "labels": LABELS}
    return Case(name, args, call=call, **fields)


def of_calibration(name: str, **fields: Any) -> Case:
    fields = {"optional": {"weights": IMPORTANCE}, "where": COUNTED, **fields}
    args = fields.pop("args", {"logits": MANY, "labels": TRUE})
    return Case(name, args, oracle=getattr(references, name), **fields)


def fit_of(coefficients: Any, covariance: Any, **fields: Any) -> jl.LogisticFit:
    """A fit that was not computed, of twelve rows that weigh 15."""
    usual = {
        "log_likelihood": jnp.float32(-3.0),
        "null_log_likelihood": jnp.float32(-5.0),
        "deviance": jnp.float32(6.0),
        "num_rows": jnp.int32(12),
        "total_weight": jnp.float32(15.0),
        "has_intercept": jnp.bool_(True),
        "firth": jnp.bool_(False),
        "converged": jnp.bool_(True),
        "steps": jnp.int32(5),
        "separated": jnp.bool_(False),
    }
    return jl.LogisticFit(jnp.asarray(coefficients), jnp.asarray(covariance), **usual | fields)


def of_fits(name: str, *, args: Mapping[str, Any] = NONE, **fields: Any) -> Case:
    """What follows from a fit, as a function of its coefficients and their covariance."""

    def call(coefficients: Any, covariance: Any, **rest: Any) -> Any:
        return getattr(jl, name)(fit_of(coefficients, covariance), **rest)

    args = {"coefficients": COEFFICIENTS, "covariance": COVARIANCE, **args}
    return Case(name, args, call=call, oracle=getattr(references, name), **fields)


def ratio_test(log_likelihood: Any, restricted: Any) -> Any:
    """Of fits of two coefficients and one."""
    fits = (
        fit_of(COEFFICIENTS[:size], COVARIANCE[:size, :size], log_likelihood=likelihood)
        for size, likelihood in ((2, log_likelihood), (1, restricted))
    )
    return jl.likelihood_ratio_test(*fits)


def mean_probability(coefficients: Any, covariance: Any, features: Any) -> Any:
    def of(fit: jl.LogisticFit) -> Any:
        return jl.predict_probs(fit, features).mean()

    return jl.delta_method(of, fit_of(coefficients, covariance))


def checked_loss(logits: Any, labels: Any) -> Any:
    return jl.checked(jl.softmax_cross_entropy_with_integer_labels)(logits, labels)


def soft_labels(possible: Any) -> dict[str, Any]:
    """Targets that are 0 where a class can't be."""
    labels = np.where(possible, TARGETS, 0.0)
    return {"labels": labels / np.maximum(labels.sum(axis=-1, keepdims=True), 1e-9)}


SOFT: dict[str, Any] = {
    "args": {"labels": TARGETS},
    "infinite": soft_labels(np.isfinite(REMOVED)),
    "masked": soft_labels(WHERE),
}
HARD: dict[str, Any] = {"args": {"labels": LABELS}}
CROSS_ENTROPY = {"label_smoothing": (0.0, 0.125, 0.25), "z_loss": (0.0, 0.125, 0.25)}
ALPHA = {"alpha": (1.5, 1.25, 1.75)}

CASES = [
    of_numbers("logit", "probs", Y, np.array([0.0, 1.0, 0.5]), jax.scipy.special.logit),
    of_numbers("sigmoid", "logits", X, SURE, jax.nn.sigmoid),
    of_numbers("log_sigmoid", "logits", X, SURE, jax.nn.log_sigmoid),
    of_numbers("softplus", "x", X, SURE, jax.nn.softplus),
    of_numbers("logitexp", "log_probs", -abs(X), np.array([-np.inf, 0.0, -1.0]), None),
    of_numbers("log1mexp", "x", abs(X), np.array([0.0, np.inf, 1.0]), jax.nn.log1mexp),
    Case(
        "sigmoid_binary_cross_entropy",
        {"logits": X, "labels": Y},
        infinite={"logits": SURE, "labels": MATCHING},
        optional={"pos_weight": BY_CLASS},
        options={"label_smoothing": (0.0, 0.125, 0.25)},
        oracle=references.sigmoid_binary_cross_entropy,
        peer=optax.sigmoid_binary_cross_entropy,
    ),
    Case(
        "sigmoid_entropy",
        {"logits": X},
        infinite={"logits": SURE},
        oracle=references.sigmoid_entropy,
    ),
    Case(
        "sigmoid_kl_divergence",
        {"logits_p": X, "logits_q": X[::-1]},
        infinite={"logits_p": SURE, "logits_q": SURE},
        oracle=references.sigmoid_kl_divergence,
    ),
    Case(
        "sigmoid_focal_loss",
        {"logits": X, "labels": Y},
        infinite={"logits": SURE, "labels": MATCHING},
        options={"gamma": (2.0, 1.5, 3.0), "alpha": (0.25, 0.5, 0.75)},
        oracle=references.sigmoid_focal_loss,
        peer=lambda logits, labels: optax.sigmoid_focal_loss(logits, labels, alpha=0.25),
    ),
    of_rows("logsumexp", peer=lambda logits: jax.nn.logsumexp(logits, axis=-1)),
    of_rows("softmax", peer=jax.nn.softmax),
    of_rows("log_softmax", peer=jax.nn.log_softmax),
    of_rows("class_log_odds"),
    of_rows(
        "softmax_cross_entropy",
        **SOFT,
        optional={"class_weights": BY_CLASS},
        options=CROSS_ENTROPY,
        peer=optax.softmax_cross_entropy,
    ),
    of_rows(
        "softmax_cross_entropy_with_integer_labels",
        **HARD,
        optional={"class_weights": BY_CLASS},
        options=CROSS_ENTROPY,
        peer=optax.softmax_cross_entropy_with_integer_labels,
    ),
    of_rows(
        "softmax_focal_loss_with_integer_labels",
        **HARD,
        optional={"class_weights": BY_CLASS},
        options={"label_smoothing": (0.0, 0.125, 0.25), "gamma": (2.0, 1.5, 3.0)},
    ),
    of_rows("kept_log_probs", args={"labels": LABELS, "kept": RECORDED}),
    of_rows(
        "poly_loss_cross_entropy",
        **SOFT,
        options={"epsilon": (2.0, -0.5, 1.0)},
        peer=optax.losses.poly_loss_cross_entropy,
    ),
    of_rows("entropy"),
    of_pairs("softmax_kl_divergence"),
    of_pairs("jensen_shannon_divergence", options={"weight": (0.5, 0.25, 0.75)}),
    of_pairs("total_variation"),
    of_rows(
        "softmax_cross_entropy_with_teacher_logits",
        args={"teacher_logits": OTHER},
        infinite={"teacher_logits": np.where(np.isinf(REMOVED), -np.inf, OTHER)},
        options={"temperature": (1.0, 2.0, 3.0)},
    ),
    of_rows("sparsemax", peer=optax.projections.projection_simplex),
    of_rows("entmax", options=ALPHA),
    of_rows("entmax_loss", **SOFT, options=ALPHA),
    of_rows("entmax_loss_with_integer_labels", **HARD, options=ALPHA),
    of_rows("soft_cap", where=None, options={"cap": (30.0, 3.0, 5.0)}),
    of_rows("apply_temperature", options={"temperature": (1.0, 0.5, 0.0)}),
    of_rows(
        "penalize_repetition",
        where=None,
        args={"counts": np.arange(K, dtype=np.int32) % 3},
        options={"penalty": (1.0, 1.5, 2.0)},
    ),
    of_rows(
        "adjust_prior", where=None, args={"source_prior": BY_CLASS, "target_prior": BY_CLASS[::-1]}
    ),
    of_rows("keep_top_k", options={"k": (2, 3, 1)}),
    of_rows("keep_top_p", options={"p": (1.0, 0.75, 0.5)}),
    of_rows("keep_top_n_sigma", options={"n": (np.inf, 1.0, 0.5)}),
    of_rows("keep_min_p", options={"p": (0.0, 0.25, 0.5)}),
    of_rows("keep_typical", options={"mass": (1.0, 0.75, 0.5)}),
    of_rows("keep_epsilon", options={"epsilon": (0.0, 0.125, 0.25)}),
    of_rows("keep_eta", options={"epsilon": (0.0, 0.125, 0.25)}),
    of_draws("sample", options={"temperature": (1.0, 0.5, 0.0)}),
    of_draws("sample_with_log_prob", options={"temperature": (1.0, 0.5, 0.0)}),
    of_draws("sample_without_replacement", static={"k": 2}),
    Case(
        "speculative_sample",
        {
            "key": np.array([0, 7], np.uint32),
            "draft_classes": LABELS[: N - 1],
            "draft_logits": OTHER[: N - 1],
            "target_logits": LOGITS,
        },
        infinite={"draft_logits": np.where(LOGITS[: N - 1] < 0, -np.inf, OTHER[: N - 1])},
        options={"temperature": (1.0, 0.5, 0.0)},
        call=drawn("speculative_sample"),
    ),
    of_draws("gumbel_softmax", options={"temperature": (1.0, 0.5, 2.0)}),
    of_heads(
        "linear_softmax_cross_entropy",
        where=ROWS,
        optional={"weights": WEIGHTS, "class_weights": BY_CLASS},
        options={**CROSS_ENTROPY, "temperature": (1.0, 2.0, 3.0)},
    ),
    of_heads(
        "linear_log_probs",
        optional={"kept": RECORDED, "temperature": WARMTH},
        options={"soft_cap": (None, 5.0, 7.0)},
    ),
    of_heads(
        "linear_log_probs_and_entropy",
        where=ROWS,
        optional={"temperature": WARMTH},
        options={"soft_cap": (None, 5.0, 7.0)},
    ),
    Case(
        "linear_top_k",
        {"hidden": HIDDEN, "kernel": KERNEL, "bias": BIAS},
        where=ROWS,
        optional={"class_where": np.arange(K) != 2, "temperature": WARMTH},
        options={"soft_cap": (None, 5.0, 7.0)},
        static={"k": 3},
        oracle=references.linear_top_k,
    ),
    Case(
        "linear_softmax_kl_divergence",
        {
            "hidden_p": HIDDEN,
            "kernel_p": KERNEL,
            "hidden_q": normal(N, 2),
            "kernel_q": normal(2, K),
        },
        where=ROWS,
        optional={"bias_p": BIAS, "bias_q": BIAS[::-1], "weights": WEIGHTS, "temperature": WARMTH},
        oracle=references.linear_softmax_kl_divergence,
    ),
    of_blocks("blockwise_map"),
    of_blocks("blockwise_sum", optional={"weights": WEIGHTS}),
    of_blocks("blockwise_mean", optional={"weights": WEIGHTS}, where=ROWS),
    Case("checked", {"logits": LOGITS, "labels": LABELS}, call=checked_loss),
    of_calibration("expected_calibration_error"),
    of_calibration("adaptive_calibration_error"),
    of_calibration("maximum_calibration_error"),
    of_calibration("brier_score"),
    of_calibration("classwise_calibration_error"),
    of_calibration("binary_calibration_error", args={"logits": MANY[:, 0], "labels": YES}),
    of_calibration("binary_brier_score", args={"logits": MANY[:, 0], "labels": YES}),
    of_calibration(
        "binary_reliability_curve",
        args={"logits": MANY[:, 0], "labels": YES},
        static={"num_bins": 2},
    ),
    of_calibration("reliability_curve", static={"num_bins": 2}),
    of_calibration("fit_temperature", infinite={"logits": POSSIBLE}, rtol=1e-4),
    of_calibration("fit_vector_scaling", options={"l2": (1.0, 0.5, 0.25)}, rtol=1e-3),
    of_calibration("fit_platt", args={"scores": MANY[:, 0], "labels": YES}, rtol=1e-3),
    of_rows("aps_scores", options={"penalty": (0.0, 0.125, 0.25), "num_free": (0, 1, 2)}),
    of_calibration(
        "conformal_threshold",
        args={"scores": MANY, "labels": TRUE},
        optional=NONE,
        options={"coverage": (0.9, 0.5, 0.75)},
    ),
    Case(
        "conformal_set",
        {"scores": LOGITS, "threshold": BY_CLASS},
        oracle=references.conformal_set,
    ),
    Case(
        "fit_logistic",
        {"features": FEATURES, "labels": YES},
        optional={
            "weights": IMPORTANCE,
            "offset": MANY[:, 1],
            "trials": np.full(12, 2, np.float32),
        },
        options={"l2": (0.0, 0.5, 1.0)},
        oracle=references.fit_logistic,
        rtol=1e-4,
    ),
    Case(
        "fit_multinomial",
        {"features": FEATURES, "labels": TRUE},
        optional={"weights": IMPORTANCE, "offset": MANY[:, :2]},
        options={"l2": (0.0, 0.5, 1.0)},
        static={"num_classes": 3},
        oracle=references.fit_multinomial,
        rtol=1e-3,
    ),
    of_fits("summarize", options={"level": (0.95, 0.9, 0.5)}),
    Case(
        "likelihood_ratio_test",
        {"log_likelihood": np.float32(-3.0), "restricted": np.float32(-5.0)},
        call=ratio_test,
        oracle=references.likelihood_ratio_test,
    ),
    of_fits("predict_log_odds", args={"features": FEATURES}, optional={"offset": MANY[:, 1]}),
    of_fits("predict_probs", args={"features": FEATURES}, optional={"offset": MANY[:, 1]}),
    of_fits("robust_covariance", args={"features": FEATURES, "labels": YES}),
    Case(
        "delta_method",
        {"coefficients": COEFFICIENTS, "covariance": COVARIANCE, "features": FEATURES},
        call=mean_probability,
        oracle=references.mean_probability,
    ),
]
NAMES = {case.name for case in CASES}
