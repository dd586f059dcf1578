"""Second derivatives where a weight, a share or an option is exactly 0.

What a zero lets through is nothing, and what changes with it is something: a derivative rule that
asks whether a factor is 0, instead of multiplying by it, loses that. So in each order of both modes
they are what differences of the gradient say.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpret import interpreted

import jaxlogits as jl

Array = np.ndarray[Any, Any]

RNG = np.random.default_rng(0)
ROWS, CLASSES = 3, 4
Z, OTHER = 2 * RNG.normal(size=(2, ROWS, CLASSES))
LABELS = np.array([0, 3, 1])
TARGETS = np.eye(CLASSES)[LABELS]
TARGETS[1] = 1 / CLASSES  # what label smoothing would make of anything
OF_CLASSES, OF_ROWS = np.array([0.0, 1.0, 2.0, 0.5]), np.array([1.0, 0.0, 2.0])
X, Y = np.array([0.0, 0.0, 1.5, -2.0, 0.7]), np.array([0.0, 0.5, 0.0, 0.5, 0.3])
HIDDEN, KERNEL = RNG.normal(size=(ROWS, 3)), RNG.normal(size=(3, CLASSES))
ZERO = np.zeros([])


def head(**static: Any) -> Callable[..., Any]:
    return lambda hidden, kernel, weights, smoothing, of_classes, z_loss: (
        jl.linear_softmax_cross_entropy(
            hidden,
            kernel,
            LABELS,
            weights=weights,
            label_smoothing=smoothing,
            class_weights=of_classes,
            z_loss=z_loss,
            **static,
        )
    )


# Each with the arguments that it is differentiated by.
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Array, ...]]] = {
    "integer labels": (
        lambda z, smoothing, of_classes, z_loss: jl.softmax_cross_entropy_with_integer_labels(
            z, LABELS, label_smoothing=smoothing, class_weights=of_classes, z_loss=z_loss
        ),
        (Z, ZERO, OF_CLASSES, ZERO),
    ),
    "dense": (
        lambda z, targets, smoothing, of_classes, z_loss: jl.softmax_cross_entropy(
            z, targets, label_smoothing=smoothing, class_weights=of_classes, z_loss=z_loss
        ),
        (Z, TARGETS, ZERO, OF_CLASSES, ZERO),
    ),
    "focal": (
        lambda z, smoothing, of_classes: jl.softmax_focal_loss_with_integer_labels(
            z, LABELS, label_smoothing=smoothing, class_weights=of_classes
        ),
        (Z, ZERO, OF_CLASSES),
    ),
    "poly": (
        lambda z, targets, epsilon: jl.poly_loss_cross_entropy(z, targets, epsilon=epsilon),
        (Z, TARGETS, ZERO),
    ),
    "binary": (
        lambda x, y, positive, smoothing: jl.sigmoid_binary_cross_entropy(
            x, y, pos_weight=positive, label_smoothing=smoothing
        ),
        (X, Y, ZERO, ZERO),
    ),
    "binary focal": (
        lambda x, y, alpha: jl.sigmoid_focal_loss(x, y, alpha=alpha),
        (X, Y, ZERO),
    ),
    "jensen shannon": (
        lambda p, q, weight: jl.jensen_shannon_divergence(p, q, weight=weight),
        (Z, OTHER, ZERO),
    ),
    "brier": (lambda z, weights: jl.brier_score(z, LABELS, weights=weights), (Z, OF_ROWS)),
    "blocks": (
        lambda x, weights: jl.blockwise_mean(lambda p, x: (p * x).sum(1) ** 2)(
            2.0, x, weights=weights
        ),
        (HIDDEN, OF_ROWS),
    ),
    **{
        f"head, {name}": (head(**static), (HIDDEN, KERNEL, OF_ROWS, ZERO, OF_CLASSES, ZERO))
        for name, static in {
            "rows": {"reduction": "none"},
            "sum": {"reduction": "sum", "block_size": 2},
            "tiles": {"reduction": "none", "memory": "tiles"},
        }.items()
    },
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_mixed_derivatives_at_zero(name: str) -> None:
    fn, args = FUNCTIONS[name]
    rng = np.random.default_rng(1)
    every = tuple(range(len(args)))

    def total(*args: Any) -> Any:
        result = fn(*args)
        return jnp.sum(result * jnp.linspace(0.5, 1.5, result.size).reshape(result.shape))

    gradients = jax.grad(total, every)

    def second(direction: Any, *args: Any) -> Any:
        def along(*args: Any) -> Any:
            return jax.jvp(total, args, direction)[1]

        def backwards(*args: Any) -> Any:
            return sum(map(jnp.vdot, gradients(*args), direction))

        return {
            "forward over reverse": jax.jvp(gradients, args, direction)[1],
            "reverse over forward": jax.grad(along, every)(*args),
            "reverse over reverse": jax.grad(backwards, every)(*args),
        }

    with jax.enable_x64(True):
        near, at = jax.jit(gradients), interpreted(second)
        for i in every:
            # Of one argument, and upwards: what is below 0 is refused.
            direction = tuple(abs(rng.normal(size=x.shape)) * (i == j) for j, x in enumerate(args))
            h = 1e-4
            steps = [
                near(*(x + k * h * d for x, d in zip(args, direction, strict=True)))
                for k in range(4)
            ]
            want = [
                (-11 * g[0] + 18 * g[1] - 9 * g[2] + 2 * g[3]) / (6 * h)
                for g in zip(*steps, strict=True)
            ]
            for order, got in at(direction, *args).items():
                for j, (x, y) in enumerate(zip(got, want, strict=True)):
                    np.testing.assert_allclose(
                        x, y, rtol=1e-6, atol=1e-6, err_msg=f"{order}, by {i} and {j}"
                    )
