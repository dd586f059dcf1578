"""What the helpers of ``base/xla.py`` change in compiled programs, with and without them."""

import inspect
import re
from typing import Any

import jax
import plain
import pytest

from jaxlogits._src.base import xla

# The compiler of older versions is another, for which some of the helpers do nothing.
newest = pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="for XLA:CPU as it is since")


def compiled(program: plain.Program, *, is_plain: bool) -> Any:
    """Compiled from nothing, with the helper or without it."""
    if not is_plain:
        jax.clear_caches()
        return jax.jit(program.fn).lower(*program.args).compile()
    with plain.without(program.helper):
        return compiled(program, is_plain=False)


def operations(executable: Any) -> list[set[str]]:
    """The operations of each computation: those of a fused loop stand together."""
    blocks = re.split(r"\n\n", executable.as_text())
    return [set(re.findall(r"= \S+ ([a-z0-9-]+)\(", block)) for block in blocks]


def case(helper: str, name: str) -> Any:
    program = next(p for p in plain.PROGRAMS if (p.helper, p.name) == (helper, name))
    return pytest.param(program, id=f"{helper}-{name.replace(' ', '-')}")


def test_every_helper_is_tried_and_measured() -> None:
    helpers = {name for name, _ in inspect.getmembers(xla, inspect.isfunction)}
    assert set(plain.PLAIN) == helpers
    assert {program.helper for program in plain.PROGRAMS} == helpers


@newest
@pytest.mark.parametrize("program", [case("apart", "mean of losses")])
def test_what_is_computed_from_a_sum_is_not_in_its_loop(program: plain.Program) -> None:
    together = {"reduce", "log-plus-one"}
    assert not any(together <= ops for ops in operations(compiled(program, is_plain=False)))
    assert any(together <= ops for ops in operations(compiled(program, is_plain=True)))


@newest
@pytest.mark.parametrize(
    "program",
    [
        case("by_device", "mean of losses"),
        case("by_itself", "mean divergence"),
        case("is_nonzero", "logsumexp"),
        case("is_positive", "sparsemax"),
        case("of_row", "logsumexp"),
        case("one_array", "gradients of a linear head"),
        case("one_array", "mean divergence"),
        case("rounded", "mean of losses"),
        case("zero_at", "losses"),
    ],
)
def test_less_memory(program: plain.Program) -> None:
    """The bar is a quarter less; each saves at least an array that is as large as the logits."""
    ours, theirs = (
        compiled(program, is_plain=is_plain).memory_analysis().temp_size_in_bytes
        for is_plain in (False, True)
    )
    assert ours < 0.75 * theirs
