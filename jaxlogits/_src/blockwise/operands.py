"""What the blocks read, taken apart and put together again by masks of the same form."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import jax

from jaxlogits._src.base.dtypes import Array

Leaves = list[Array]
Tree = TypeVar("Tree")


class Operands(NamedTuple):
    """What the blocks read: arrays that all rows share, and arrays with an entry per row.

    A mask of operands has a bool for each array, and a part of them None for those left out.
    """

    shared: Leaves
    fill: Leaves  # a row to put in the place of those that don't count; empty where all do
    rows: Leaves
    weights: Array | None = None
    keep: Array | None = None

    @property
    def per_row(self) -> Operands:
        """Those alone that have an entry per row."""
        return self._replace(shared=[], fill=[])


def partition(tree: Tree, mask: Any) -> tuple[Tree, Tree]:
    """The arrays that the mask takes, and the others; each with None in the place of the rest."""
    taken = jax.tree.map(lambda x, take: x if take else None, tree, mask)
    rest = jax.tree.map(lambda x, take: None if take else x, tree, mask)
    return taken, rest


def combine(first: Tree, second: Tree) -> Tree:
    """Undo ``partition``."""

    def either(x: Any, y: Any) -> Any:
        return y if x is None else x

    whole: Tree = jax.tree.map(either, first, second, is_leaf=lambda x: x is None)
    return whole
