"""Everything between a model's last layer and its decision: logits, probabilities, losses.

Pure functions that compose with every JAX transform::

    import jaxlogits as jl

    loss = jl.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
"""

from jaxlogits._src.base.checked import checked
from jaxlogits._src.blockwise.linear_head import (
    linear_softmax_cross_entropy,
    linear_softmax_kl_divergence,
)
from jaxlogits._src.blockwise.linear_log_probs import (
    linear_log_probs,
    linear_log_probs_and_entropy,
    linear_top_k,
)
from jaxlogits._src.blockwise.transforms import blockwise_map, blockwise_mean, blockwise_sum
from jaxlogits._src.calibration.binary import (
    BinaryReliabilityCurve,
    binary_brier_score,
    binary_calibration_error,
    binary_reliability_curve,
)
from jaxlogits._src.calibration.conformal import aps_scores, conformal_set, conformal_threshold
from jaxlogits._src.calibration.errors import (
    ReliabilityCurve,
    adaptive_calibration_error,
    brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_curve,
)
from jaxlogits._src.calibration.fits import (
    PlattFit,
    TemperatureFit,
    VectorScalingFit,
    fit_platt,
    fit_temperature,
    fit_vector_scaling,
)
from jaxlogits._src.decoding.sampling import (
    gumbel_softmax,
    sample,
    sample_with_log_prob,
    sample_without_replacement,
)
from jaxlogits._src.decoding.shaping import (
    adjust_prior,
    apply_temperature,
    penalize_repetition,
    soft_cap,
)
from jaxlogits._src.decoding.speculative import speculative_sample
from jaxlogits._src.decoding.truncation import (
    keep_epsilon,
    keep_eta,
    keep_min_p,
    keep_top_k,
    keep_top_n_sigma,
    keep_top_p,
    keep_typical,
)
from jaxlogits._src.log_odds import log1mexp, log_sigmoid, logit, logitexp, sigmoid, softplus
from jaxlogits._src.losses.binary import (
    sigmoid_binary_cross_entropy,
    sigmoid_entropy,
    sigmoid_focal_loss,
    sigmoid_kl_divergence,
)
from jaxlogits._src.losses.classes import (
    poly_loss_cross_entropy,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
    softmax_focal_loss_with_integer_labels,
)
from jaxlogits._src.losses.divergences import (
    entropy,
    jensen_shannon_divergence,
    softmax_cross_entropy_with_teacher_logits,
    softmax_kl_divergence,
    total_variation,
)
from jaxlogits._src.losses.sparse import (
    entmax,
    entmax_loss,
    entmax_loss_with_integer_labels,
    sparsemax,
)
from jaxlogits._src.losses.supports import kept_log_probs
from jaxlogits._src.regression.delta import Estimate, delta_method
from jaxlogits._src.regression.fit import LogisticFit, fit_logistic, fit_multinomial
from jaxlogits._src.regression.predict import predict_log_odds, predict_probs
from jaxlogits._src.regression.robust import robust_covariance
from jaxlogits._src.regression.summary import (
    LikelihoodRatioTest,
    LogisticSummary,
    likelihood_ratio_test,
    summarize,
)
from jaxlogits._src.softmax import class_log_odds, log_softmax, logsumexp, softmax

__version__ = "0.1.0"

__all__ = [
    "BinaryReliabilityCurve",
    "Estimate",
    "LikelihoodRatioTest",
    "LogisticFit",
    "LogisticSummary",
    "PlattFit",
    "ReliabilityCurve",
    "TemperatureFit",
    "VectorScalingFit",
    "adaptive_calibration_error",
    "adjust_prior",
    "apply_temperature",
    "aps_scores",
    "binary_brier_score",
    "binary_calibration_error",
    "binary_reliability_curve",
    "blockwise_map",
    "blockwise_mean",
    "blockwise_sum",
    "brier_score",
    "checked",
    "class_log_odds",
    "classwise_calibration_error",
    "conformal_set",
    "conformal_threshold",
    "delta_method",
    "entmax",
    "entmax_loss",
    "entmax_loss_with_integer_labels",
    "entropy",
    "expected_calibration_error",
    "fit_logistic",
    "fit_multinomial",
    "fit_platt",
    "fit_temperature",
    "fit_vector_scaling",
    "gumbel_softmax",
    "jensen_shannon_divergence",
    "keep_epsilon",
    "keep_eta",
    "keep_min_p",
    "keep_top_k",
    "keep_top_n_sigma",
    "keep_top_p",
    "keep_typical",
    "kept_log_probs",
    "likelihood_ratio_test",
    "linear_log_probs",
    "linear_log_probs_and_entropy",
    "linear_softmax_cross_entropy",
    "linear_softmax_kl_divergence",
    "linear_top_k",
    "log1mexp",
    "log_sigmoid",
    "log_softmax",
    "logit",
    "logitexp",
    "logsumexp",
    "maximum_calibration_error",
    "penalize_repetition",
    "poly_loss_cross_entropy",
    "predict_log_odds",
    "predict_probs",
    "reliability_curve",
    "robust_covariance",
    "sample",
    "sample_with_log_prob",
    "sample_without_replacement",
    "sigmoid",
    "sigmoid_binary_cross_entropy",
    "sigmoid_entropy",
    "sigmoid_focal_loss",
    "sigmoid_kl_divergence",
    "soft_cap",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "softmax_cross_entropy_with_teacher_logits",
    "softmax_focal_loss_with_integer_labels",
    "softmax_kl_divergence",
    "softplus",
    "sparsemax",
    "speculative_sample",
    "summarize",
    "total_variation",
]


def __dir__() -> list[str]:
    return __all__
