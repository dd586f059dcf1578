"""What every test and doctest runs under."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxlogits as jl

# Read by matplotlib when an example imports it: figures need no display.
os.environ.setdefault("MPLBACKEND", "Agg")

# A promotion or a broadcast that nobody wrote is an error.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# No test reads the tracebacks of operations, and lowering with them takes processor time.
jax.config.update("jax_traceback_in_locations_limit", 0)


@pytest.fixture(autouse=True)
def _names_for_doctests(doctest_namespace: dict[str, Any]) -> None:
    """What a docstring's example may use without an import."""
    doctest_namespace.update(jax=jax, jnp=jnp, jl=jl)
