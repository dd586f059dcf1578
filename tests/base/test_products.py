"""Products in which 0 wins over infinity, and every derivative of a product all the same."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxlogits._src.base.products import times, weigh

INF, NAN = np.inf, np.nan

# What a derivative along (1, 1) makes of a scalar function, in each order of both modes.
ORDERS: dict[str, Callable[[Any], Any]] = {
    "forward": lambda fn: lambda a, b: jax.jvp(fn, (a, b), (1.0, 1.0))[1],
    "reverse": lambda fn: lambda a, b: sum(jax.grad(fn, (0, 1))(a, b)),
}
FACTORS = [(0.0, 2.0), (2.0, 0.0), (0.0, 0.0), (-1.5, 3.0)]


def of_sin(product: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda a, b: jnp.sin(product(a, b))


@pytest.mark.parametrize("first", ORDERS)
@pytest.mark.parametrize("second", ORDERS)
@pytest.mark.parametrize("product", [times, weigh])
def test_derivatives_are_those_of_a_product(product: Any, first: str, second: str) -> None:
    """Also where a factor is exactly 0: what the other adds to it isn't."""

    def thrice(product: Any) -> Any:
        return ORDERS[first](ORDERS[second](ORDERS[first](of_sin(product))))

    a, b = jnp.array(FACTORS).T
    got, want = (jax.jit(jax.vmap(thrice(fn)))(a, b) for fn in (product, jnp.multiply))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("product", [times, weigh])
def test_nothing_counts_nothing(product: Any) -> None:
    """Its value, and what it passes on of tangents and cotangents that are infinite or NaN."""
    nothing, others = jnp.zeros(3), jnp.array([INF, -INF, 3e38])
    np.testing.assert_array_equal(product(nothing, others), 0.0)
    np.testing.assert_array_equal(product(others, nothing), 0.0)
    along = jax.jvp(lambda x: product(nothing, x), [jnp.ones(3)], [jnp.array([INF, NAN, 1.0])])[1]
    np.testing.assert_array_equal(along, 0.0)
    (back,) = jax.vjp(lambda x: product(nothing, x), jnp.ones(3))[1](jnp.array([INF, NAN, 1.0]))
    np.testing.assert_array_equal(back, 0.0)


def test_nan_stays_in_a_value_but_not_in_a_tangent_of_zero() -> None:
    np.testing.assert_array_equal(weigh(jnp.zeros(1), jnp.array([NAN])), NAN)
    np.testing.assert_array_equal(times(jnp.array([NAN]), jnp.zeros(1)), 0.0)
    np.testing.assert_array_equal(times(jnp.array([NAN]), jnp.ones(1)), NAN)


@pytest.mark.parametrize("axes", [(0, 1), (1, None), (None, 0)])
def test_vmap(axes: tuple[int | None, int | None]) -> None:
    a, b = np.float32([[0, 2], [3, 4]]), np.float32([[5, INF], [INF, 8]])
    got = jax.vmap(times, axes)(a, b)
    pairs = [
        tuple(
            x if axis is None else np.take(x, i, axis) for x, axis in zip((a, b), axes, strict=True)
        )
        for i in range(2)
    ]
    np.testing.assert_array_equal(got, [times(x, y) for x, y in pairs])


@pytest.mark.parametrize("check_vma", [True, False])
def test_in_shard_map_one_factor_may_be_the_same_everywhere(check_vma: bool) -> None:
    """So its gradient is the sum over the devices, as that of a product is."""
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    a, b = jnp.array([2.0]), jnp.array([0.0, INF, 3.0, -1.0])

    def total(a: jax.Array, b: jax.Array) -> jax.Array:
        of_device = jax.shard_map(
            lambda a, b: jax.lax.psum(times(a, b).sum(), "rows"),
            mesh=mesh,
            in_specs=(P(), P("rows")),
            out_specs=P(),
            check_vma=check_vma,
        )
        each: jax.Array = of_device(a, jnp.where(jnp.isinf(b), 0.5, b))
        return each

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(a, b)
    np.testing.assert_allclose(value, 5.0)
    np.testing.assert_allclose(gradients[0], [2.5])
    np.testing.assert_allclose(gradients[1], [2, 0, 2, 2])


def test_export() -> None:
    """A program with such products is plain StableHLO, and knows of no library."""
    exported = jax.export.export(jax.jit(jax.grad(lambda a, b: times(a, b).sum())))(
        *[jax.ShapeDtypeStruct(jax.export.symbolic_shape("n"), jnp.float32)] * 2
    )
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_array_equal(again.call(jnp.zeros(2), jnp.array([3.0, 4.0])), [3, 4])
