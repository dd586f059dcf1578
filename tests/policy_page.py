"""The functions that docs/policy-and-preference-losses.md defines, for those who compare them."""

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jaxlogits as jl

PAGE = Path(__file__).parents[1] / "docs" / "policy-and-preference-losses.md"


def functions() -> dict[str, Callable[..., Any]]:
    """By name, as the page has them."""
    names: dict[str, Any] = {"jax": jax, "jnp": jnp, "jl": jl}
    for example in doctest.DocTestParser().get_examples(PAGE.read_text()):
        if example.source.startswith("def "):
            exec(example.source, names)
    return names
