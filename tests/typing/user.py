"""A program of a user: it calls all that is public, and a strict type checker has nothing to say.

Not run, only checked; tests/test_typing.py does it.
"""

from typing import assert_type

import jax
import jax.numpy as jnp
import numpy as np

import jaxlogits as jl

z = jnp.zeros([4, 3])
labels = jnp.array([0, 1, 2, 0])
yes = labels > 0
key = jax.random.key(0)

# Log-odds; numbers and NumPy's arrays are as good as JAX's.
assert_type(jl.logit(0.55), jax.Array)
assert_type(jl.sigmoid(np.zeros(3)), jax.Array)
assert_type(jl.log_sigmoid(z), jax.Array)
assert_type(jl.softplus(z), jax.Array)
assert_type(jl.logitexp(jl.log_sigmoid(z)), jax.Array)
assert_type(jl.log1mexp(jl.softplus(z)), jax.Array)

# Rows.
assert_type(jl.softmax(z, axis=(0, 1), where=z > 0), jax.Array)
assert_type(jl.log_softmax(z), jax.Array)
assert_type(jl.logsumexp(z, axis=0), jax.Array)
assert_type(jl.class_log_odds(z), jax.Array)
assert_type(jl.sparsemax(z), jax.Array)
assert_type(jl.entmax(z, alpha=1.25), jax.Array)
assert_type(jl.entropy(z), jax.Array)
assert_type(jl.softmax_kl_divergence(z, z), jax.Array)
assert_type(jl.jensen_shannon_divergence(z, z, weight=0.3), jax.Array)
assert_type(jl.total_variation(z, z), jax.Array)

# Losses.
p = jl.softmax(z)
losses = [
    jl.softmax_cross_entropy(z, p, label_smoothing=0.1),
    jl.softmax_cross_entropy_with_integer_labels(z, labels, class_weights=jnp.ones(3)),
    jl.softmax_cross_entropy_with_teacher_logits(z, z, temperature=2),
    jl.softmax_focal_loss_with_integer_labels(z, labels, gamma=1.5),
    jl.poly_loss_cross_entropy(z, p),
    jl.sigmoid_binary_cross_entropy(z[:, 0], yes, pos_weight=3.0),
    jl.sigmoid_focal_loss(z[:, 0], yes, alpha=0.25),
    jl.sigmoid_entropy(z),
    jl.sigmoid_kl_divergence(z, z),
    jl.entmax_loss(z, p, alpha=1.2),
    jl.entmax_loss_with_integer_labels(z, labels),
]
assert_type(losses, list[jax.Array])
assert_type(jl.kept_log_probs(z, labels, jnp.zeros([4, 2], int)), jax.Array)

# Shaping and drawing.
shaped = jl.soft_cap(jl.apply_temperature(z, 0.7), 30.0)
shaped = jl.penalize_repetition(shaped, jnp.zeros([4, 3], int), 1.2)
shaped = jl.adjust_prior(shaped, jnp.ones(3) / 3, jnp.array([0.5, 0.3, 0.2]))
shaped = jl.keep_typical(jl.keep_min_p(jl.keep_top_p(jl.keep_top_k(shaped, 2), 0.9), 0.1), 0.9)
shaped = jl.keep_top_n_sigma(shaped, 1.0)
shaped = jl.keep_eta(jl.keep_epsilon(shaped, 1e-3), 1e-3)
assert_type(shaped, jax.Array)
assert_type(jl.sample(key, shaped, shape=(5,)), jax.Array)
assert_type(jl.sample_with_log_prob(key, shaped), tuple[jax.Array, jax.Array])
assert_type(jl.sample_without_replacement(key, z, 2), jax.Array)
verified = jl.speculative_sample(key, labels[:3], z[:3], z, temperature=0.7)
assert_type(verified, tuple[jax.Array, jax.Array])
assert_type(jl.gumbel_softmax(key, z, hard=True), jax.Array)


# Blockwise, and a linear head.
def loss(kernel: jax.Array, hidden: jax.Array, labels: jax.Array) -> jax.Array:
    """Of a block of rows."""
    return jl.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels)


hidden, kernel = jnp.zeros([4, 2]), jnp.zeros([2, 3])
for transform in (jl.blockwise_mean, jl.blockwise_sum, jl.blockwise_map):
    transform(loss, block_size=2)(kernel, hidden, labels)
jax.jit(jax.grad(jl.blockwise_mean(loss, has_aux=False)))(kernel, hidden, labels, where=yes)
assert_type(jl.linear_softmax_cross_entropy(hidden, kernel, labels, soft_cap=30.0), jax.Array)
assert_type(jl.linear_log_probs(hidden, kernel, labels), jax.Array)
both = jl.linear_log_probs_and_entropy(hidden, kernel, labels, where=yes)
assert_type(both, tuple[jax.Array, jax.Array])
assert_type(jl.linear_top_k(hidden, kernel, 2, class_where=yes[:3]), tuple[jax.Array, jax.Array])
assert_type(jl.linear_softmax_kl_divergence(hidden, kernel, hidden, kernel), jax.Array)

# Calibration and conformal sets.
curve = jl.reliability_curve(z, labels, num_bins=10)
assert_type(curve, jl.ReliabilityCurve)
assert_type(curve.confidence, jax.Array)
metrics = [
    jl.expected_calibration_error(z, labels),
    jl.adaptive_calibration_error(z, labels),
    jl.maximum_calibration_error(z, labels),
    jl.brier_score(z, labels, weights=jnp.ones(4)),
]
assert_type(metrics, list[jax.Array])
binary: jl.BinaryReliabilityCurve = jl.binary_reliability_curve(z, z > 0)
errors = [jl.binary_calibration_error(z, z > 0), jl.classwise_calibration_error(z, labels)]
assert_type([*errors, jl.binary_brier_score(z, z > 0), binary.edges], list[jax.Array])
temperature: jl.TemperatureFit = jl.fit_temperature(z, labels)
vector: jl.VectorScalingFit = jl.fit_vector_scaling(z, labels, l2=0.1)
platt: jl.PlattFit = jl.fit_platt(z[:, 0], yes)
calibrated = [z / temperature.temperature, z * vector.scale + vector.bias, platt.slope * z]
assert_type(calibrated, list[jax.Array])
threshold = jl.conformal_threshold(jl.aps_scores(z, key=key), labels, 0.9)
assert_type(jl.conformal_set(jl.aps_scores(z), threshold), jax.Array)

# Regression.
fit = jl.fit_logistic(hidden, yes, l2=1e-3, firth=True)
assert_type(fit, jl.LogisticFit)
assert_type(jl.fit_multinomial(hidden, labels, 3).separated, jax.Array)
fit = fit._replace(covariance=jl.robust_covariance(fit, hidden, yes))
summary: jl.LogisticSummary = jl.summarize(fit, level=0.9)
assert_type(summary.p_values, jax.Array)
ratio: jl.LikelihoodRatioTest = jl.likelihood_ratio_test(fit, jl.fit_logistic(hidden[:, :1], yes))
assert_type([ratio.p_value, summary.likelihood_ratio.log_p_value], list[jax.Array])
effect: jl.Estimate = jl.delta_method(lambda fit: jl.predict_probs(fit, hidden), fit)
assert_type(effect.standard_error, jax.Array)
assert_type(jl.predict_log_odds(fit, hidden) + jl.predict_probs(fit, hidden), jax.Array)


# A checked function has the parameters and the result that it had.
@jl.checked
@jax.jit
def step(x: jax.Array) -> jax.Array:
    """Raises if a probability isn't one."""
    return jl.logit(x)


def half(x: float) -> int:
    """Something else than arrays."""
    return round(x / 2)


assert_type(jl.checked(half)(3.0), int)
