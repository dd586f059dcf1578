"""How uncertain a softmax is, and how far it is from another one.

``p`` and ``q`` are the softmaxes of two rows of logits. Every function keeps its digits for nearly
equal rows: a distilled model that is almost trained, or a policy after one step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import checks
from jaxlogits._src.base.checks import Range
from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis, AxisName, wide_dtype, widen
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.base.rules import derivatives
from jaxlogits._src.base.varying import vary, varying_axes
from jaxlogits._src.mesh.explicit import on_explicit_mesh
from jaxlogits._src.mesh.reductions import row_sum
from jaxlogits._src.rows.entropy import cross_entropy_rows, entropy_rows, tempered_rows
from jaxlogits._src.rows.kl import kl_rows
from jaxlogits._src.rows.mixtures import js_rows
from jaxlogits._src.rows.pairs import prob_difference_rows
from jaxlogits._src.rows.rows import Rows, reduced, rows_of


@program("axis", "axis_name")
@on_explicit_mesh(logits="rows classes", where="rows classes | rows", result="rows")
def entropy(
    logits: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Entropy of softmax(logits) in nats, -sum_k p_k log p_k.

    Args:
        logits, axis, where, axis_name: as in ``softmax_cross_entropy``.

    Returns:
        The shape of ``logits`` without ``axis``, in float32 or wider.
    Accuracy: float32 5 ulp for gaps of at most 1, plus 1 ulp per unit of the gap beyond.

    Example:
        >>> jl.entropy(jnp.array([[0.0, 0.0], [50.0, 0.0]]))
        Array([6.931472e-01, 9.836625e-21], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, one_per_row=True)
    return reduced(lambda z: entropy_rows(z, axis_name), rows)


@program("axis", "axis_name")
@on_explicit_mesh(
    logits_p="rows classes", logits_q="rows classes", where="rows classes | rows", result="rows"
)
def softmax_kl_divergence(
    logits_p: ArrayLike,
    logits_q: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Kullback–Leibler divergence of two softmaxes, KL(p || q) = sum_k p_k log(p_k / q_k).

    Args:
        logits_p, logits_q: unnormalised log probabilities of p and q, in the same shape.
        axis, where, axis_name: as in ``softmax_cross_entropy``.

    Returns:
        The shape of the logits without ``axis``, in float32 or wider; +inf if q = 0 < p.
    Accuracy: float32 5e-7 relative for p close to q, plus 1 ulp per unit of gap; gradients too.

    Example:
        >>> jl.softmax_kl_divergence(jnp.array([0.0, 1.0]), jnp.array([0.0, 1.00001]))
        Array(9.857301e-12, dtype=float32)
    """
    p, q = _two_rows("logits_p", logits_p, "logits_q", logits_q, axis, where, axis_name)
    return reduced(lambda p, q: kl_rows(p, q, axis_name), p, q, wide=False)


@program("axis", "axis_name", weight=Option(Range(0, 1)))
@on_explicit_mesh(
    logits_p="rows classes", logits_q="rows classes", where="rows classes | rows", result="rows"
)
def jensen_shannon_divergence(
    logits_p: ArrayLike,
    logits_q: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    weight: ArrayLike = 0.5,
) -> Array:
    """Jensen–Shannon divergence, w KL(p || m) + (1 - w) KL(q || m) with m = w p + (1 - w) q.

    Args:
        logits_p, logits_q, axis, where, axis_name: as in ``softmax_kl_divergence``.
        weight: w in [0, 1], the share of p in the mixture; at both ends the divergence is 0.

    Returns:
        The shape of the logits without ``axis``, in float32 or wider; at most log(2) at weight 0.5.
    Accuracy: float32 1e-6 relative for p close to q, plus 1 ulp per unit of gap; gradients too.
    Reference: Lin, Divergence Measures Based on the Shannon Entropy (1991), equation 4.1.

    Example:
        >>> jl.jensen_shannon_divergence(jnp.array([0.0, 1.0]), jnp.array([0.0, -1.0])).round(4)
        Array(0.1109, dtype=float32)
    """
    p, q = _two_rows("logits_p", logits_p, "logits_q", logits_q, axis, where, axis_name)
    w = checks.as_option("weight", weight, p.z.dtype)
    return reduced(lambda p, q: js_rows(p, q, w, axis_name), p, q)


@program("axis", "axis_name")
@on_explicit_mesh(
    logits_p="rows classes", logits_q="rows classes", where="rows classes | rows", result="rows"
)
def total_variation(
    logits_p: ArrayLike,
    logits_q: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Total variation distance of two softmaxes, sum_k |p_k - q_k| / 2.

    Args:
        logits_p, logits_q, axis, where, axis_name: as in ``softmax_kl_divergence``.

    Returns:
        The shape of the logits without ``axis``, in float32 or wider, in [0, 1].
    Accuracy: float32 5e-7 relative for p close to q, plus 1 ulp per unit of gap.
    Transforms: the derivative of a class with p = q is 0.

    Example:
        >>> jl.total_variation(jnp.array([0.0, 1.0]), jnp.array([0.0, -1.0])).round(4)
        Array(0.4621, dtype=float32)
    """
    p, q = _two_rows("logits_p", logits_p, "logits_q", logits_q, axis, where, axis_name)

    def distance(p: Array, q: Array) -> Array:
        sizes = _size(prob_difference_rows(p, q, axis_name))
        total = 0.5 * row_sum(sizes, axis_name)[..., 0]
        return total - lax.stop_gradient(jnp.maximum(total - 1.0, 0.0))  # the sum's rounding

    return reduced(distance, p, q)


@program("axis", "axis_name", temperature=Option(Range(above=0)))
@on_explicit_mesh(
    logits="rows classes", teacher_logits="rows classes", where="rows classes | rows", result="rows"
)
def softmax_cross_entropy_with_teacher_logits(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    temperature: ArrayLike = 1.0,
) -> Array:
    """Distillation loss, -T**2 sum_k t_k log p_k, from two softmaxes at temperature T.

    Args:
        logits: the student's, floating point; p = softmax(logits / T).
        teacher_logits: the teacher's, in the shape of ``logits``; t = softmax(teacher_logits / T).
        axis, where, axis_name: as in ``softmax_kl_divergence``.
        temperature: T, above 0. T**2 makes up for gradients that shrink like 1 / T**2.

    Returns:
        The shape of ``logits`` without ``axis``, in float32 or wider; +inf where p = 0 < t.
    Accuracy: float32 5 ulp for gaps of at most 1, plus 1 ulp per unit of the gap beyond. The
        gradient keeps its digits where the student is close to the teacher.
    Reference: Hinton et al., Distilling the Knowledge in a Neural Network (2015), section 2.

    Example:
        >>> student, teacher = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0])
        >>> jl.softmax_cross_entropy_with_teacher_logits(student, teacher, temperature=2.0).round(4)
        Array(2.2612, dtype=float32)
    """
    student, teacher = _two_rows(
        "logits", logits, "teacher_logits", teacher_logits, axis, where, axis_name
    )
    scale = checks.as_option("temperature", temperature, student.z.dtype)

    def loss(z: Array, of_teacher: Array) -> Array:
        t = tempered_rows(of_teacher, scale, axis_name)
        # In eighths, as the sum over classes may be beyond the greatest number where T times it
        # isn't.
        return 8.0 * (scale * cross_entropy_rows(t, z, scale, axis_name))

    return reduced(jax.checkpoint(loss), student, teacher)


def _two_rows(
    name_a: str,
    a: ArrayLike,
    name_b: str,
    b: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    axis_name: AxisName,
) -> tuple[Rows, Rows]:
    """Both logits as rows of one dtype."""
    first, second = checks.as_floating(name_a, a), checks.as_floating(name_b, b)
    checks.require_shape(name_b, second, first.shape, f"the shape of {name_a},")
    checks.require_classes(name_a, first, checks.normalize_axes(first, axis, name_a))
    if first.dtype != second.dtype:
        dtype = wide_dtype(first, second)
        first, second = widen(first, dtype), widen(second, dtype)
    # One of them may be the same on all devices, as a uniform teacher is.
    first, second = vary((first, second), varying_axes(first, second))
    options = axis, where, axis_name
    return (
        rows_of(first, *options, name=name_a, one_per_row=True),
        rows_of(second, *options, name=name_b, one_per_row=True),
    )


@jax.custom_jvp
def _size(x: Array) -> Array:
    """|x| with slope 0 at 0, where autodiff takes 1."""
    return jnp.abs(x)


derivatives(_size, lambda dx, _, x: jnp.sign(x) * dx)
