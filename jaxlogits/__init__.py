"""Everything between a model's last layer and its decision: logits, probabilities, losses.

Pure functions that compose with every JAX transform::

    import jaxlogits as jl

    loss = jl.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
"""

from jaxlogits._binary_losses import sigmoid_binary_cross_entropy, sigmoid_focal_loss
from jaxlogits._blockwise import blockwise_map, blockwise_mean, blockwise_sum
from jaxlogits._checks import checked
from jaxlogits._class_losses import (
    poly_loss_cross_entropy,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
    softmax_focal_loss_with_integer_labels,
)
from jaxlogits._divergences import (
    entropy,
    jensen_shannon_divergence,
    softmax_cross_entropy_with_teacher_logits,
    softmax_kl_divergence,
    total_variation,
)
from jaxlogits._linear_head import (
    linear_log_probs,
    linear_softmax_cross_entropy,
    linear_softmax_kl_divergence,
)
from jaxlogits._log_odds import log1mexp, log_sigmoid, logit, sigmoid, softplus
from jaxlogits._softmax import class_log_odds, log_softmax, logsumexp, softmax

__version__ = "0.1.0"

__all__ = [
    "blockwise_map",
    "blockwise_mean",
    "blockwise_sum",
    "checked",
    "class_log_odds",
    "entropy",
    "jensen_shannon_divergence",
    "linear_log_probs",
    "linear_softmax_cross_entropy",
    "linear_softmax_kl_divergence",
    "log1mexp",
    "log_sigmoid",
    "log_softmax",
    "logit",
    "logsumexp",
    "poly_loss_cross_entropy",
    "sigmoid",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "softmax_cross_entropy_with_teacher_logits",
    "softmax_focal_loss_with_integer_labels",
    "softmax_kl_divergence",
    "softplus",
    "total_variation",
]
