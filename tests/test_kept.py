"""What the backward pass keeps: the arguments or the result, and no mask or sum in between.

Counted in numbers of ``[N, K]`` arrays of the dtype that computations run in.
Python evaluates the forward pass, so that nothing that XLA would drop is missing here.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlogits as jl

N, K = 64, 32

# Functions of rows by the [N, K] arrays that they are given: each may be kept, and nothing else.
# Their results are no larger, so that a function of one array keeps either of the two.
OF_LOGITS = ("softmax", "log_softmax", "logsumexp", "class_log_odds", "entropy", "sparsemax")
OF_LOGITS += ("entmax", "soft_cap", "apply_temperature", "sigmoid", "log_sigmoid", "softplus")
HARD = ("softmax_cross_entropy", "softmax_focal_loss", "entmax_loss")
PAIRS = ("softmax_kl_divergence", "jensen_shannon_divergence", "total_variation")
PAIRS += ("softmax_cross_entropy_with_teacher_logits",)
SOFT = ("softmax_cross_entropy", "poly_loss_cross_entropy", "entmax_loss")
SOFT += ("sigmoid_binary_cross_entropy", "sigmoid_focal_loss")


def kept(name: str, dtype: str, *others: Any, **options: Any) -> float:
    """In arrays of the logits' shape and the wide dtype."""
    z = jax.random.normal(jax.random.key(0), (N, K), dtype)
    _, backward = jax.vjp(lambda z: getattr(jl, name)(z, *others, **options), z)
    leaves = [leaf for leaf in jax.tree.leaves(backward) if hasattr(leaf, "nbytes")]
    return sum(leaf.nbytes for leaf in leaves) / (4 * N * K)


BY_ROW = 8 / K  # a few numbers of each row
each_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


@each_dtype
@pytest.mark.parametrize("name", OF_LOGITS)
def test_functions_of_logits(name: str, dtype: str) -> None:
    options = {"cap": 30.0} if name == "soft_cap" else {}
    options |= {"temperature": 0.7} if name == "apply_temperature" else {}
    assert kept(name, dtype, **options) <= 1.0 + BY_ROW / 4


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_half_precision_is_kept_as_such(name: str) -> None:
    assert kept(name, "bfloat16") <= 0.5 + BY_ROW / 4


@each_dtype
@pytest.mark.parametrize("name", HARD)
def test_losses_of_integer_labels(name: str, dtype: str) -> None:
    labels = jnp.arange(N) % K
    # entmax's makes its labels an array of targets.
    most = 2.0 if name == "entmax_loss" else 1.0 if dtype == "float32" else 0.5
    assert kept(f"{name}_with_integer_labels", dtype, labels) <= most + 2 * BY_ROW


@each_dtype
@pytest.mark.parametrize("name", [*PAIRS, *SOFT])
def test_functions_of_two_arrays(name: str, dtype: str) -> None:
    other = jnp.full((N, K), 1 / K, jnp.float32 if name in SOFT else dtype)
    assert kept(name, dtype, other) <= 2.0 + BY_ROW


@each_dtype
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_a_mask_is_kept_once(name: str, dtype: str) -> None:
    where = np.ones([N, K], bool)
    most = 1.0 if dtype == "float32" else 0.5
    assert kept(name, dtype, where=where) <= most + 1 / 4 + BY_ROW / 2  # a byte a class
