"""What each library has: the names of what does it, which comparison.py looks up where it can.

``name(argument)`` is an argument of a function. ``"name in words: ..."`` can't be looked up.
"""

Row = dict[str, str]

_JL, _OPTAX = "jaxlogits.softmax_cross_entropy_with_integer_labels", "optax.losses"
_OPTAX_LOSS = f"{_OPTAX}.softmax_cross_entropy_with_integer_labels"
_F = "torch.nn.functional"

LOSSES: dict[str, Row] = {
    "softmax": {
        "jaxlogits": "jaxlogits.softmax",
        "JAX": "jax.nn.softmax",
        "torch": f"{_F}.softmax",
    },
    "masked softmax": {
        "jaxlogits": "jaxlogits.softmax(where)",
        "JAX": "jax.nn.softmax(where)",
    },
    "cross entropy, integer labels": {
        "jaxlogits": _JL,
        "optax": _OPTAX_LOSS,
        "torch": f"{_F}.cross_entropy",
    },
    "… ignoring examples": {
        "jaxlogits": f"{_JL}(where)",
        "torch": f"{_F}.cross_entropy(ignore_index)",
    },
    "… masking classes": {"jaxlogits": f"{_JL}(where)", "optax": f"{_OPTAX_LOSS}(where)"},
    "… with label smoothing": {
        "jaxlogits": f"{_JL}(label_smoothing)",
        "torch": f"{_F}.cross_entropy(label_smoothing)",
    },
    "… with class weights": {
        "jaxlogits": f"{_JL}(class_weights)",
        "torch": f"{_F}.cross_entropy(weight)",
    },
    "… with z-loss": {"jaxlogits": f"{_JL}(z_loss)"},
    "… with classes sharded over devices": {"jaxlogits": f"{_JL}(axis_name)"},
    "binary cross entropy": {
        "jaxlogits": "jaxlogits.sigmoid_binary_cross_entropy",
        "optax": f"{_OPTAX}.sigmoid_binary_cross_entropy",
        "torch": f"{_F}.binary_cross_entropy_with_logits",
    },
    "… with a weight for positives": {
        "jaxlogits": "jaxlogits.sigmoid_binary_cross_entropy(pos_weight)",
        "torch": f"{_F}.binary_cross_entropy_with_logits(pos_weight)",
    },
    "binary focal loss": {
        "jaxlogits": "jaxlogits.sigmoid_focal_loss",
        "optax": f"{_OPTAX}.sigmoid_focal_loss",
    },
    "softmax focal loss": {"jaxlogits": "jaxlogits.softmax_focal_loss_with_integer_labels"},
    "KL divergence of logits": {"jaxlogits": "jaxlogits.softmax_kl_divergence"},
    "KL divergence of log probabilities": {
        "optax": f"{_OPTAX}.kl_divergence_with_log_targets",
        "torch": f"{_F}.kl_div",
    },
    "Jensen-Shannon divergence": {"jaxlogits": "jaxlogits.jensen_shannon_divergence"},
    "sampling": {
        "jaxlogits": "jaxlogits.sample",
        "JAX": "jax.random.categorical",
        "torch": "torch.distributions.Categorical",
    },
    "top-k, top-p, min-p and others": {"jaxlogits": "jaxlogits.keep_top_p"},
    "speculative sampling": {"jaxlogits": "jaxlogits.speculative_sample"},
    "CTC loss": {"optax": f"{_OPTAX}.ctc_loss", "torch": f"{_F}.ctc_loss"},
    "ranking loss": {
        "optax": f"{_OPTAX}.ranking_softmax_loss",
        "torch": f"{_F}.margin_ranking_loss",
    },
    "triplet loss": {
        "optax": f"{_OPTAX}.triplet_margin_loss",
        "torch": f"{_F}.triplet_margin_loss",
    },
    "regression losses": {"optax": f"{_OPTAX}.huber_loss", "torch": f"{_F}.huber_loss"},
    "optimizers": {"optax": "optax.adam", "torch": "torch.optim.Adam"},
}

_HEAD = "jaxlogits.linear_softmax_cross_entropy"
_TOKAMAX, _CCE = "tokamax.linear_softmax_cross_entropy_loss", "jax_cce.linear_cross_entropy"
_TORCH, _APPLE = f"{_F}.linear_cross_entropy", "cut_cross_entropy.linear_cross_entropy"
_LIGER = "liger_kernel.transformers.functional.liger_fused_linear_cross_entropy"
_CHUNKED = "liger_kernel.chunked_loss"

HEADS: dict[str, Row] = {
    "a loss per token": {
        "jaxlogits": f"{_HEAD}(reduction)",
        "tokamax": f"{_TOKAMAX}(reduction)",
        "torch": f"{_TORCH}(reduction)",
        "CCE": f"{_APPLE}(reduction)",
        "Liger": f"{_LIGER}(reduction)",
    },
    "ignoring tokens": {
        "jaxlogits": f"{_HEAD}(where)",
        "torch": f"{_TORCH}(ignore_index)",
        "CCE": f"{_APPLE}(ignore_index)",
        "Liger": f"{_LIGER}(ignore_index)",
    },
    "token weights": {"jaxlogits": f"{_HEAD}(weights)"},
    "bias": {
        "jaxlogits": f"{_HEAD}(bias)",
        "torch": f"{_TORCH}(linear_bias)",
        "Liger": f"{_LIGER}(bias)",
    },
    "masked classes, padded vocabulary": {"jaxlogits": f"{_HEAD}(class_where)"},
    "label smoothing": {
        "jaxlogits": f"{_HEAD}(label_smoothing)",
        "torch": f"{_TORCH}(label_smoothing)",
        "Liger": f"{_LIGER}(label_smoothing)",
    },
    "class weights": {
        "jaxlogits": f"{_HEAD}(class_weights)",
        "torch": f"{_TORCH}(weight)",
        "Liger": f"{_LIGER}(ce_weight)",
    },
    "z-loss": {"jaxlogits": f"{_HEAD}(z_loss)", "Liger": f"{_LIGER}(lse_square_scale)"},
    "soft cap": {
        "jaxlogits": f"{_HEAD}(soft_cap)",
        "CCE": f"{_APPLE}(softcap)",
        "Liger": f"{_LIGER}(softcap)",
    },
    "temperature": {"jaxlogits": f"{_HEAD}(temperature)"},
    "accumulation dtype": {
        "jaxlogits": f"{_HEAD}(accumulate_dtype)",
        "Liger": f"{_LIGER}(accum_dtype)",
    },
    "shifted labels": {"jax-cce": f"{_CCE}(shift)", "CCE": f"{_APPLE}(shift)"},
    "skipping tiny gradients": {
        "jax-cce": f"{_CCE}(filter_eps)",
        "CCE": f"{_APPLE}(filter_eps)",
    },
    "log probability and entropy": {"jaxlogits": "jaxlogits.linear_log_probs_and_entropy"},
    "top-k classes": {"jaxlogits": "jaxlogits.linear_top_k"},
    "divergence between two heads": {
        "jaxlogits": "jaxlogits.linear_softmax_kl_divergence",
        "Liger": f"{_CHUNKED}.LigerFusedLinearJSDLoss",
    },
    "DPO, GRPO and others, ready-made": {"Liger": f"{_CHUNKED}.LigerFusedLinearGRPOLoss"},
    "any per-token function": {"jaxlogits": "jaxlogits.blockwise_map"},
    "hand-written GPU kernels": {
        "tokamax": "in words: Mosaic",
        "CCE": "in words: Triton",
        "Liger": "in words: Triton",
    },
}

_SM = "statsmodels.api"

OTHERS: dict[str, Row] = {
    "sparsemax": {
        "jaxlogits": "jaxlogits.sparsemax",
        "optax": "optax.projections.projection_simplex",
        "entmax": "entmax.sparsemax",
    },
    "entmax of any alpha": {"jaxlogits": "jaxlogits.entmax", "entmax": "entmax.entmax_bisect"},
    "their losses": {
        "jaxlogits": "jaxlogits.entmax_loss",
        "optax": f"{_OPTAX}.multiclass_sparsemax_loss",
        "entmax": "entmax.entmax_bisect_loss",
    },
    "normmax, budgets": {"entmax": "entmax.normmax_bisect"},
    "expected calibration error": {
        "jaxlogits": "jaxlogits.expected_calibration_error",
        "netcal": "netcal.metrics.ECE",
    },
    "reliability diagram": {
        "jaxlogits": "jaxlogits.reliability_curve",
        "netcal": "netcal.presentation.ReliabilityDiagram",
    },
    "temperature scaling": {
        "jaxlogits": "jaxlogits.fit_temperature",
        "netcal": "netcal.scaling.TemperatureScaling",
    },
    "Platt scaling": {
        "jaxlogits": "jaxlogits.fit_platt",
        "netcal": "netcal.scaling.LogisticCalibration",
    },
    "vector scaling": {"jaxlogits": "jaxlogits.fit_vector_scaling"},
    "beta calibration": {"netcal": "netcal.scaling.BetaCalibration"},
    "histogram binning, isotonic regression": {"netcal": "netcal.binning.HistogramBinning"},
    "calibration of regressions": {"netcal": "netcal.regression.VarianceScaling"},
    "conformal sets": {"jaxlogits": "jaxlogits.conformal_set"},
    "logistic regression": {"jaxlogits": "jaxlogits.fit_logistic", "statsmodels": f"{_SM}.Logit"},
    "multinomial regression": {
        "jaxlogits": "jaxlogits.fit_multinomial",
        "statsmodels": f"{_SM}.MNLogit",
    },
    "Firth's penalty": {"jaxlogits": "jaxlogits.fit_logistic(firth)"},
    "many fits in one call": {"jaxlogits": "in words: `jax.vmap`"},
    "derivatives of a fit": {"jaxlogits": "in words: `jax.grad`"},
    "formulas": {"statsmodels": "statsmodels.formula.api.logit"},
    "generalized linear models": {"statsmodels": f"{_SM}.GLM"},
    "ordinal regression": {"statsmodels": "statsmodels.miscmodels.ordinal_model.OrderedModel"},
    "mixed models": {"statsmodels": f"{_SM}.MixedLM"},
}

FEATURES = {
    "Losses and sampling": (("jaxlogits", "optax", "JAX", "torch"), LOSSES),
    "A linear head and its loss": (
        ("jaxlogits", "tokamax", "jax-cce", "torch", "CCE", "Liger"),
        HEADS,
    ),
    "Sparse maps, calibration, regression": (
        ("jaxlogits", "optax", "entmax", "netcal", "statsmodels"),
        OTHERS,
    ),
}
