"""Layouts: how the arguments and results of a function are split over an Explicit mesh.

A function declares the dimensions of its arguments, as in ``logits="rows classes", labels="rows"``.
"rows" stands for all dimensions that count rows and "classes" for that of the classes; any other
word is a dimension that every device has as a whole. Where there are two forms, as in
``where="rows classes | rows"``, the rank of the array tells which it has. An array of another rank,
such as a single number, isn't split, and neither is a dimension of 1, which broadcasts.

The arguments settle the layout in the order in which they are declared: the first one that is split
along a dimension says over which mesh axes. One that is split otherwise is sent round: a kernel
whose classes are split over the mesh axis of the rows, as FSDP does, is gathered over it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxlogits._src.base import checks
from jaxlogits._src.base.dtypes import AxisName
from jaxlogits._src.base.varying import axis_names

Arguments = dict[str, Any]
Forms = dict[str, str]  # of the arguments that have rows or classes
Names = tuple[Any, ...]  # for each dimension the mesh axes over which it is split, or None


class Layout(NamedTuple):
    """Over which mesh axes rows and classes are split."""

    mesh: Any
    rows: Names  # of each dimension that counts rows
    classes: AxisName
    axes: tuple[int, ...]  # the dimensions of logits that hold their classes

    def spec(self, form: str, shape: tuple[int, ...]) -> PartitionSpec:
        """How an argument or a result of this form and shape is split."""
        split: dict[Any, AxisName] = {"classes": self.classes} | dict(enumerate(self.rows))
        places = _places(form, len(shape), len(self.rows), self.axes)
        pairs = zip(places, shape, strict=True)
        return PartitionSpec(*(None if size == 1 else split.get(place) for place, size in pairs))

    @property
    def options(self) -> Arguments:
        """What tells a function how its arguments are split."""
        over = tuple(name for names in self.rows for name in axis_names(names))
        return {"axis_name": self.classes, "row_axis_name": over or None}


def layout_of(forms: Forms, arguments: Arguments) -> Layout | None:
    """The layout that the arguments' types say; the first of the forms is that of the rows."""
    first = next(iter(forms))
    axes: tuple[int, ...] = ()
    if "axis" in arguments:
        axes = checks.normalize_axes(arguments[first], arguments["axis"])
    num_rows = jnp.ndim(arguments[first]) - len(_dimensions(forms[first], 0, axes))
    if num_rows < 0:
        return None
    split: dict[Any, AxisName] = {}
    for name in filter(lambda name: is_split(arguments[name]), forms):
        array, names = arguments[name], names_of(arguments[name])
        places = _places(forms[name], array.ndim, num_rows, axes)
        for place, over, size in zip(places, names, array.shape, strict=True):
            is_known = place in split or not (isinstance(place, int) or place == "classes")
            if not is_known and size != 1 and (free := _less(over, split.values())):
                split[place] = free
    rows = tuple(split.get(d) for d in range(num_rows))
    return Layout(mesh_of(arguments.values()), rows, split.get("classes"), axes)


def _places(form: str, ndim: int, num_rows: int, axes: tuple[int, ...]) -> list[int | str]:
    """What each dimension of an array is, where one of its forms has as many."""
    forms = (_dimensions(each, num_rows, axes) for each in form.split("|"))
    return next((places for places in forms if len(places) == ndim), ["any"] * ndim)


def _dimensions(form: str, num_rows: int, axes: tuple[int, ...]) -> list[int | str]:
    """The dimensions of a form: an int for one that counts rows, else the word for it."""
    words = form.split()
    if words == ["rows", "classes"] and axes:
        dims = range(num_rows + len(axes))
        rows = {d: i for i, d in enumerate(d for d in dims if d not in axes)}
        # Several dimensions of classes become one, in which only a split of the first is a slice.
        return [rows.get(d, "classes" if d == axes[0] else "more classes") for d in dims]
    return [place for word in words for place in (range(num_rows) if word == "rows" else [word])]


def _less(names: Any, others: Iterable[Any]) -> AxisName:
    """The mesh axes but those among ``others``, None for none."""
    used = {name for of_dim in others for name in axis_names(of_dim)}
    left = tuple(name for name in axis_names(names) if name not in used)
    return (left[0] if len(left) == 1 else left) or None


# What a type says, and how an array gets another.


def names_of(array: Any) -> Names:
    """For each dimension the Explicit mesh axes over which an array is split, or None."""
    if not isinstance(array, jax.Array):
        return ()
    sharding = jax.typeof(array).sharding
    return tuple(sharding.spec) if sharding.mesh.explicit_axes else ()


def is_split(array: Any) -> bool:
    """Whether an array is split over an axis of an Explicit mesh."""
    return any(names_of(array))


def mesh_of(arrays: Iterable[Any]) -> Any:
    """The mesh of the first array that is split over one, or has one."""
    typed = [x for x in arrays if isinstance(x, jax.Array)]
    first = next(filter(is_split, typed), typed[0])
    return jax.typeof(first).sharding.mesh


def placed(array: Any, mesh: Any, spec: PartitionSpec) -> Any:
    """The array, sent to where ``spec`` says."""
    return jax.sharding.reshard(array, NamedSharding(mesh, spec))
