"""Every public function under every transform."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro
import transforms as tf
from transforms import Case

import jaxlogits as jl

# Public names that other files take through the same transforms, or that are transforms themselves.
ELSEWHERE = {
    "adaptive_calibration_error": "calibration/test_errors.py",
    "adjust_prior": "decoding/test_shaping.py",
    "apply_temperature": "decoding/test_shaping.py",
    "aps_scores": "calibration/test_conformal.py",
    "binary_brier_score": "calibration/test_binary.py",
    "binary_calibration_error": "calibration/test_binary.py",
    "binary_reliability_curve": "calibration/test_binary.py",
    "blockwise_map": "blockwise/test_transforms.py",
    "blockwise_mean": "blockwise/test_transforms.py",
    "blockwise_sum": "blockwise/test_transforms.py",
    "brier_score": "calibration/test_errors.py",
    "checked": "base/test_checked.py",
    "classwise_calibration_error": "calibration/test_errors.py",
    "conformal_set": "calibration/test_conformal.py",
    "conformal_threshold": "calibration/test_conformal.py",
    "delta_method": "regression/test_delta.py",
    "entmax": "losses/test_sparse.py",
    "entmax_loss": "losses/test_sparse.py",
    "entmax_loss_with_integer_labels": "losses/test_sparse.py",
    "entropy": "losses/test_divergences.py",
    "expected_calibration_error": "calibration/test_errors.py",
    "fit_logistic": "regression/test_fit.py",
    "fit_multinomial": "regression/test_fit.py",
    "fit_platt": "calibration/test_fits.py",
    "fit_temperature": "calibration/test_fits.py",
    "fit_vector_scaling": "calibration/test_fits.py",
    "gumbel_softmax": "decoding/test_sampling.py",
    "jensen_shannon_divergence": "losses/test_divergences.py",
    "keep_epsilon": "decoding/test_truncation.py",
    "keep_eta": "decoding/test_truncation.py",
    "keep_min_p": "decoding/test_truncation.py",
    "keep_top_k": "decoding/test_truncation.py",
    "keep_top_n_sigma": "decoding/test_truncation.py",
    "keep_top_p": "decoding/test_truncation.py",
    "keep_typical": "decoding/test_truncation.py",
    "likelihood_ratio_test": "regression/test_summary.py",
    "kept_log_probs": "losses/test_supports.py",
    "linear_log_probs": "blockwise/test_linear_log_probs.py",
    "linear_log_probs_and_entropy": "blockwise/test_linear_log_probs.py",
    "linear_softmax_cross_entropy": "blockwise/test_linear_head.py",
    "linear_softmax_kl_divergence": "blockwise/test_linear_head.py",
    "linear_top_k": "blockwise/test_linear_log_probs.py",
    "maximum_calibration_error": "calibration/test_errors.py",
    "penalize_repetition": "decoding/test_shaping.py",
    "predict_log_odds": "regression/test_predict.py",
    "predict_probs": "regression/test_predict.py",
    "reliability_curve": "calibration/test_errors.py",
    "robust_covariance": "regression/test_robust.py",
    "sample": "decoding/test_sampling.py",
    "sample_with_log_prob": "decoding/test_sampling.py",
    "sample_without_replacement": "decoding/test_sampling.py",
    "soft_cap": "decoding/test_shaping.py",
    "softmax_cross_entropy_with_teacher_logits": "losses/test_divergences.py",
    "softmax_kl_divergence": "losses/test_divergences.py",
    "sparsemax": "losses/test_sparse.py",
    "summarize": "regression/test_summary.py",
    "speculative_sample": "decoding/test_speculative.py",
    "total_variation": "losses/test_divergences.py",
}

# Two examples: a confident one, and one with a masked class and a label that isn't the likeliest.
LOGITS = np.array([[6.0, -1.5, 0.25], [0.5, 1.75, -2.0]], np.float32)
WHERE = np.array([[True, True, True], [True, False, True]])
LABELS = np.array([0, 2], np.int32)
TARGETS = np.array([[0.75, 0.125, 0.125], [0.25, 0.0, 0.75]], np.float32)
OPTIONS = {
    "label_smoothing": np.array([0.125, 0.25], np.float32),
    "class_weights": np.array([[1.0, 2.0, 0.5], [0.25, 1.0, 1.5]], np.float32),
    "z_loss": np.array([0.5, 0.125], np.float32),
}
X = np.array([[-3.0, 0.5], [12.0, -0.25]], np.float32)
Y = np.array([[0.25, 1.0], [1.0, 0.0]], np.float32)
PROBS = np.array([[0.01, 0.5], [0.75, 0.999]], np.float32)


def elementwise(name: str, oracle: Callable[..., Any], x: np.ndarray) -> Case:
    return Case(name, getattr(jl, name), oracle, (x,))


def of_classes(name: str, *labels: np.ndarray, oracle: Callable[..., Any], **options: Any) -> Case:
    """A function of logits, labels and ``where``, with its options as further arguments."""
    fn = getattr(jl, name)

    def call(z: Any, *rest: Any) -> Any:
        labels_, (where, *values) = rest[: len(labels)], rest[len(labels) :]
        return fn(z, *labels_, where=where, **dict(zip(options, values, strict=True)))

    return Case(name, call, oracle, (LOGITS, *labels, WHERE, *options.values()))


def of_labels(name: str, oracle: Callable[..., Any], **options: Any) -> Case:
    """A binary loss with its options as further arguments."""
    fn = getattr(jl, name)

    def call(x: Any, y: Any, *values: Any) -> Any:
        return fn(x, y, **dict(zip(options, values, strict=True)))

    return Case(name, call, oracle, (X, Y, *options.values()))


def binary_kl_to(a: Any, b: Any) -> Any:
    """KL(sigmoid(a) || sigmoid(b)); without b the entropy."""
    terms = 0
    for x, y in ((a, b), (-a, None if b is None else -b)):
        log_p = ro.log(ro.sigmoid(x))
        terms += ro.sigmoid(x) * (-log_p if y is None else log_p - ro.log(ro.sigmoid(y)))
    return terms


CASES = [
    elementwise("logit", lambda p: ro.log(p / (1 - p)), PROBS),
    elementwise("sigmoid", ro.sigmoid, X),
    elementwise("log_sigmoid", lambda x: ro.log(ro.sigmoid(x)), X),
    elementwise("softplus", lambda x: -ro.log(ro.sigmoid(-x)), X),
    elementwise("logitexp", lambda x: x - ro.log(1 - ro.exp(x)), -np.abs(X)),
    elementwise("log1mexp", lambda x: ro.log(1 - ro.exp(-x)), np.abs(X)),
    elementwise("sigmoid_entropy", lambda x: binary_kl_to(x, None), X),
    Case("sigmoid_kl_divergence", jl.sigmoid_kl_divergence, binary_kl_to, (X, X[::-1])),
    of_classes("logsumexp", oracle=ro.logsumexp),
    of_classes("softmax", oracle=ro.softmax),
    of_classes("log_softmax", oracle=ro.log_softmax),
    of_classes("class_log_odds", oracle=ro.class_log_odds),
    of_labels("sigmoid_binary_cross_entropy", ro.binary_cross_entropy),
    of_labels(
        "sigmoid_binary_cross_entropy",
        ro.binary_cross_entropy,
        pos_weight=np.array([[2.0, 0.5], [3.0, 1.0]], np.float32),
        label_smoothing=np.array([0.125, 0.25], np.float32),
    ),
    of_labels(
        "sigmoid_focal_loss",
        ro.binary_focal,
        gamma=np.array([2.0, 1.5], np.float32),
        alpha=np.array([0.25, 0.5], np.float32),
    ),
    of_classes("softmax_cross_entropy", TARGETS, oracle=ro.cross_entropy),
    of_classes("softmax_cross_entropy", TARGETS, oracle=ro.cross_entropy, **OPTIONS),
    of_classes(
        "softmax_cross_entropy_with_integer_labels", LABELS, oracle=ro.integer_cross_entropy
    ),
    of_classes(
        "softmax_cross_entropy_with_integer_labels",
        LABELS,
        oracle=ro.integer_cross_entropy,
        **OPTIONS,
    ),
    of_classes(
        "softmax_focal_loss_with_integer_labels",
        LABELS,
        oracle=ro.focal,
        gamma=np.array([2.0, 1.5], np.float32),
    ),
    of_classes(
        "poly_loss_cross_entropy",
        TARGETS,
        oracle=ro.poly,
        epsilon=np.array([2.0, -0.5], np.float32),
    ),
]


def case_id(case: Case) -> str:
    options = len(case.args) > 3
    return f"{case.name}{' with options' if options else ''}"


def test_no_public_function_is_left_out() -> None:
    functions = {name for name in jl.__all__ if not inspect.isclass(getattr(jl, name))}
    assert {case.name for case in CASES} | set(ELSEWHERE) == functions


@pytest.mark.parametrize(("name", "file"), ELSEWHERE.items(), ids=ELSEWHERE)
def test_the_other_files_test_them(name: str, file: str) -> None:
    source = (Path(__file__).parent / file).read_text()
    assert re.search(rf"\b{name}\b", source)
    own_way = name in ("checked", "speculative_sample") or name.startswith("blockwise")
    assert own_way or "import transforms as tf" in source


@pytest.fixture(scope="module", params=CASES, ids=case_id)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def exact(case: Case) -> tf.Exact:
    return tf.exact(case)


def assert_close(results: tf.Results, want: np.ndarray) -> None:
    """Within 16 ulp of the largest number.

    The library promises 8 ulp or less for each number of a result or gradient; here such numbers
    are added up, up to four for each coordinate, in an order that depends on the transform.
    """
    size = np.max(np.abs(want), where=np.isfinite(want), initial=0.0)
    for transform, got in results.items():
        np.testing.assert_allclose(got, want, rtol=0, atol=16 * 2**-23 * size, err_msg=transform)


def test_transforms(case: Case, exact: tf.Exact) -> None:
    for results, want in zip(tf.of_each_order(tf.joined(case)), exact, strict=True):
        assert_close(results, want)
    assert_close({"eager": case.batch(*map(jnp.asarray, case.args))}, exact.value)


def test_vmap_over_each_argument(case: Case) -> None:
    for together, one_by_one in tf.vmapped(case):
        # XLA may add up in another order.
        np.testing.assert_allclose(together, one_by_one, rtol=4 * 2**-23, atol=2**-23)


def test_export(case: Case, exact: tf.Exact) -> None:
    assert_close(tf.exported(case), exact.value)
    assert_close({"gradient": tf.exported_gradient(tf.joined(case))}, exact.gradient)


def test_shape_and_dtype_are_known_without_values(case: Case, exact: tf.Exact) -> None:
    shape = jax.eval_shape(case.batch, *case.args)
    assert (shape.shape, shape.dtype) == (exact.value.shape, jnp.float32)
