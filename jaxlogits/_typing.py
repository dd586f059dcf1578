"""The words that signatures use."""

import jax
from jax.typing import ArrayLike as ArrayLike

Array = jax.Array
Axis = int | tuple[int, ...]
AxisName = str | tuple[str, ...] | None
