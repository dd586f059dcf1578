"""Explicit meshes: arrays whose types say how they are split, so that nobody else has to.

Under a mesh whose axes are Explicit, ``jax.typeof(x).sharding`` knows over which of them each
dimension is split. A function then runs under ``shard_map`` on that mesh, with ``axis_name`` and
``row_axis_name`` as its arguments are split, and so are its results and gradients.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxlogits._src.base.dtypes import AxisName
from jaxlogits._src.base.varying import axis_names, require_bound, varying_axes
from jaxlogits._src.mesh.layouts import (
    Arguments,
    Forms,
    Layout,
    is_split,
    layout_of,
    mesh_of,
    names_of,
    placed,
)

P = ParamSpec("P")
T = TypeVar("T")


def on_explicit_mesh(*, result: str, **forms: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator: each device runs the function on its part where the arguments' types say so.

    ``forms`` are those of the arguments (see ``layouts``), first the one that has all of the rows.
    """

    def run(fn: Callable[..., Any], arguments: Arguments, layout: Layout) -> Any:
        return _run(fn, arguments, layout, forms, result)

    return _where_split(run, forms)


def with_whole_classes(**forms: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator: what looks at a row in a way that needs all of it gathers rows that are split.

    The samplers do: the noise of each class is what one device would draw, however many there are.
    A result in the shape of the first argument is split as that is.
    """

    def run(fn: Callable[..., Any], arguments: Arguments, layout: Layout) -> Any:
        like = arguments[next(iter(forms))]
        whole = layout._replace(classes=None)
        arrays = {k: arguments[k] for k in forms if hasattr(arguments[k], "shape")}
        specs = {k: whole.spec(forms[k], x.shape) for k, x in arrays.items()}
        arrays = {k: placed(x, layout.mesh, specs[k]) for k, x in arrays.items()}
        result = fn(**arguments | arrays)
        is_map = getattr(result, "shape", None) == like.shape
        return placed(result, layout.mesh, PartitionSpec(*names_of(like))) if is_map else result

    return _where_split(run, forms)


def with_whole_arrays(fn: Callable[P, T]) -> Callable[P, T]:
    """A decorator: arrays that are split are gathered."""

    def whole(x: Any) -> Any:
        return placed(x, mesh_of([x]), PartitionSpec()) if is_split(x) else x

    @functools.wraps(fn)
    def gathered(*args: P.args, **kwargs: P.kwargs) -> T:
        given: Any = map(whole, args), {k: whole(v) for k, v in kwargs.items()}
        return fn(*given[0], **given[1])

    return gathered


def _where_split(
    run: Callable[..., Any], forms: Forms
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator: ``run(fn, arguments, layout)`` in the function's place if any array is split."""

    def decorate(fn: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(fn)
        if unknown := forms.keys() - signature.parameters.keys():
            raise TypeError(f"{fn.__name__} has no {', '.join(sorted(unknown))}")

        @functools.wraps(fn)
        def on_mesh(*args: P.args, **kwargs: P.kwargs) -> T:
            layout = None
            if any(map(is_split, (*args, *kwargs.values()))):
                arguments = signature.bind(*args, **kwargs)
                arguments.apply_defaults()
                layout = layout_of(forms, arguments.arguments)
            if layout is None:
                return fn(*args, **kwargs)
            result: T = run(fn, arguments.arguments, layout)
            return result

        return on_mesh

    return decorate


def _run(
    fn: Callable[..., Any], arguments: Arguments, layout: Layout, forms: Forms, result: str
) -> Any:
    """``fn`` under shard_map."""
    arrays = {k: jnp.asarray(v) for k, v in arguments.items() if hasattr(v, "shape")}
    others = {k: v for k, v in arguments.items() if k not in arrays}
    split = {k: v for k, v in layout.options.items() if k in arguments}
    outer = {k: _outer(k, others[k], layout.mesh) for k in split}
    options = {k: (*outer[k], *axis_names(v)) or None for k, v in split.items()}

    def call(arrays: Arguments, options: Arguments) -> Any:
        return fn(**others | arrays | options)

    # Raises what fn does, in the words for the whole arrays.
    types = {k: _whole_type(v) for k, v in arrays.items()}
    bound = {k: names or None for k, names in outer.items()}
    whole = jax.eval_shape(functools.partial(call, options=bound), types)
    specs = {k: layout.spec(forms.get(k, ""), v.shape) for k, v in arrays.items()}
    on_devices = jax.shard_map(
        functools.partial(call, options=options),
        mesh=layout.mesh,
        in_specs=(specs,),
        out_specs=jax.tree.map(lambda x: layout.spec(result, x.shape), whole),
        axis_names=set(layout.mesh.explicit_axes if layout.mesh.manual_axes else ()),  # or all
    )
    return on_devices({k: placed(v, layout.mesh, specs[k]) for k, v in arrays.items()})


def _outer(option: str, axis_name: AxisName, mesh: Any) -> tuple[str, ...]:
    """What the caller has named of a surrounding shard_map; Explicit axes are in the types."""
    names = tuple(name for name in axis_names(axis_name) if name not in mesh.explicit_axes)
    require_bound(option, names)
    return names


def _whole_type(array: Any) -> Any:
    """The type of an array as if it weren't split over the Explicit axes."""
    if not varying_axes(array):
        return jax.ShapeDtypeStruct(array.shape, array.dtype)
    whole = PartitionSpec(*[None] * array.ndim)
    return jax.typeof(array).update(sharding=NamedSharding(mesh_of([array]), whole))
