"""Explicit meshes: arrays whose types say how they are split, so that nobody else has to.

Under a mesh whose axes are Explicit, ``jax.typeof(x).sharding`` knows over which of them each
dimension is split. A function then runs under ``shard_map`` on that mesh, with ``axis_name`` and
``row_axis_name`` as its arguments are split, and so are its results and gradients.

Each argument has a role, which is a split: logits have that of rows and classes, labels that of the
rows. The arguments together settle it, and one that is split otherwise is sent round to its role's:
a kernel whose classes are split over the mesh axis of the rows, as FSDP does, is gathered over it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxlogits._src.base.dtypes import AxisName
from jaxlogits._src.base.varying import (
    axis_names,
    is_bound,
    require_bound,
    require_split,
    varying_axes,
)

P = ParamSpec("P")
T = TypeVar("T")
Arguments = dict[str, Any]
Names = tuple[Any, ...]  # for each dimension the mesh axes over which it is split, or None


class Layout(NamedTuple):
    """How the arguments of a function are split."""

    mesh: Any
    full: Names  # the dimensions of rows with their classes or features
    rows: Names  # those that count rows
    classes: AxisName
    options: Arguments  # what tells the function so

    def spec(self, name: str, shape: tuple[int, ...]) -> PartitionSpec:
        """How an argument or a result of ``shape`` is split; what is broadcast is not."""
        if name.startswith("kernel"):
            return PartitionSpec(None, self.classes)
        if name.startswith(("bias", "class_")):
            return PartitionSpec(self.classes)
        if name == "kept":
            return PartitionSpec(*self.rows, None)
        names = self.full if len(shape) == len(self.full) else self.rows
        pairs = zip(shape, names[len(names) - len(shape) :], strict=True)
        return PartitionSpec(*(None if size == 1 else axes for size, axes in pairs))


def on_explicit_mesh(
    layout_of: Callable[[Arguments], Layout | None],
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator: each device runs the function on its part where the arguments' types say so."""

    def decorate(fn: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(fn)
        def on_mesh(*args: P.args, **kwargs: P.kwargs) -> T:
            layout = None
            if any(any(_names(x)) for x in (*args, *kwargs.values())):
                arguments = inspect.signature(fn).bind(*args, **kwargs)
                arguments.apply_defaults()
                layout = layout_of(arguments.arguments)
            if layout is None:
                return fn(*args, **kwargs)
            result: T = _run(fn, arguments.arguments, layout)
            return result

        return on_mesh

    return decorate


def _run(fn: Callable[..., Any], arguments: Arguments, layout: Layout) -> Any:
    """``fn`` under shard_map."""
    arrays = {k: jnp.asarray(v) for k, v in arguments.items() if hasattr(v, "shape")}
    others = {k: v for k, v in arguments.items() if k not in arrays}
    outer = {k: _outer(k, others[k], layout.mesh) for k in layout.options}
    options = {k: (*outer[k], *axis_names(v)) or None for k, v in layout.options.items()}

    def call(arrays: Arguments, options: Arguments) -> Any:
        return fn(**others | arrays | options)

    # Raises what fn does, in the words for the whole arrays.
    types = {k: _whole_type(v) for k, v in arrays.items()}
    bound = {k: names or None for k, names in outer.items()}
    result = jax.eval_shape(functools.partial(call, options=bound), types)
    specs = {k: layout.spec(k, v.shape) for k, v in arrays.items()}
    on_devices = jax.shard_map(
        functools.partial(call, options=options),
        mesh=layout.mesh,
        in_specs=(specs,),
        out_specs=jax.tree.map(lambda x: layout.spec("", x.shape), result),
        axis_names=set(layout.mesh.explicit_axes if layout.mesh.manual_axes else ()),  # or all
    )
    return on_devices({k: _placed(v, layout.mesh, specs[k]) for k, v in arrays.items()})


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
    return jax.typeof(array).update(sharding=NamedSharding(_mesh([array]), whole))


def with_whole_rows(fn: Callable[P, T]) -> Callable[P, T]:
    """A decorator: what looks at a row in a way that needs all of it gathers rows that are split.

    The samplers do: the noise of each class is what one device would draw, however many there are.
    """

    @functools.wraps(fn)
    def gathered(*args: P.args, **kwargs: P.kwargs) -> T:
        arguments = inspect.signature(fn).bind(*args, **kwargs)
        arguments.apply_defaults()
        given = arguments.arguments
        layout = split_logits(given) if any(any(_names(x)) for x in given.values()) else None
        if layout is None:
            return fn(*args, **kwargs)
        split = PartitionSpec(*_names(given["logits"]))
        names = (None if axes == layout.classes else axes for axes in layout.full)
        whole = layout._replace(full=tuple(names))
        for name in ("logits", "where"):
            if hasattr(given[name], "shape"):
                spec = whole.spec(name, given[name].shape)
                given[name] = _placed(given[name], layout.mesh, spec)
        result = fn(*arguments.args, **arguments.kwargs)
        is_map = getattr(result, "shape", None) == given["logits"].shape
        placed: T = _placed(result, layout.mesh, split) if is_map else result
        return placed

    return gathered


def with_whole_arrays(fn: Callable[P, T]) -> Callable[P, T]:
    """A decorator: arrays that are split are gathered."""

    def whole(x: Any) -> Any:
        return _placed(x, _mesh([x]), PartitionSpec()) if any(_names(x)) else x

    @functools.wraps(fn)
    def gathered(*args: P.args, **kwargs: P.kwargs) -> T:
        given: Any = map(whole, args), {k: whole(v) for k, v in kwargs.items()}
        return fn(*given[0], **given[1])

    return gathered


# The layouts.


def split_logits(arguments: Arguments) -> Layout | None:
    """The layout of a function of logits: theirs, and where they are whole that of the others."""
    logits, axis = _first_array(arguments), arguments["axis"]
    shape, axes = getattr(logits, "shape", ()), axis if isinstance(axis, tuple) else (axis,)
    if not all(-len(shape) <= a < len(shape) for a in axes):
        return None
    classes = [a % len(shape) for a in axes]
    rows = [d for d in range(len(shape)) if d not in classes]
    full: list[Any] = [None] * len(shape)
    for array in arguments.values():
        dims = range(len(shape)) if getattr(array, "ndim", None) == len(shape) else rows
        _settle(full, dims, array, shape)
    # Several dimensions of classes become one, in which only a split of the first is a slice.
    names = tuple(axes if d not in classes[1:] else None for d, axes in enumerate(full))
    if not any(full):
        return None
    of_rows = tuple(names[d] for d in rows)
    axis_name = names[classes[0]]
    return Layout(_mesh(arguments.values()), names, of_rows, axis_name, {"axis_name": axis_name})


def split_layer(arguments: Arguments) -> Layout | None:
    """The layout of a function of hidden rows and kernels.

    The rows are split as hidden is, the classes as the kernel is, over mesh axes that the rows
    leave: over those that both have the kernel is gathered, once, as FSDP means it.
    """
    hidden = _first_array(arguments)
    shape = jnp.shape(hidden)[:-1]
    if jnp.ndim(hidden) < 1 or any(jnp.ndim(x) != 2 for x in _named(arguments, "kernel")):
        return None
    rows: list[Any] = [None] * len(shape)
    for array in _named(arguments, "hidden"):
        _settle(rows, range(len(shape)), array, shape)
    per_class = [x for x in _named(arguments, "kernel", "bias", "class_") if x.ndim > 0]
    free = (_less(_names(x)[-1], rows) for x in per_class if _names(x))
    classes = next((names for names in free if names), None)
    for array in _named(arguments, "label", "where", "weights", "temperature"):
        if jnp.ndim(array) == len(shape):
            _settle(rows, range(len(shape)), array, shape, taken=[classes])
    over = tuple(name for names in rows for name in axis_names(names))
    options = {"axis_name": classes, "row_axis_name": over or None}
    return Layout(_mesh(arguments.values()), (*rows, None), tuple(rows), classes, options)


def _first_array(arguments: Arguments) -> Any:
    """The array that the function is about, after a sampler's key."""
    return next(value for name, value in arguments.items() if name != "key")


def _named(arguments: Arguments, *prefixes: str) -> list[Any]:
    """The arrays among the arguments whose names start so."""
    return [v for k, v in arguments.items() if k.startswith(prefixes) and hasattr(v, "shape")]


def _settle(
    split: list[Any], dims: Iterable[int], array: Any, shape: tuple[int, ...], taken: Any = ()
) -> None:
    """Take an array's split over, where none is known yet and its mesh axes are free."""
    for d, names, size in zip(dims, _names(array), getattr(array, "shape", ()), strict=False):
        if names and split[d] is None and size == shape[d]:
            split[d] = _less(names, [*split, *taken])


def _less(names: Any, others: Iterable[Any]) -> AxisName:
    """The mesh axes but those among ``others``, None for none."""
    used = {name for of_dim in others for name in axis_names(of_dim)}
    left = tuple(name for name in axis_names(names) if name not in used)
    return (left[0] if len(left) == 1 else left) or None


# The blockwise transforms.


def on_split_rows(
    fn: Callable[[Any, Any], Any], axis_name: AxisName, row_ndim: int, *, total: bool
) -> Callable[[Any, Any], Any]:
    """``fn(shared, rows)``, run by each device on its part of the rows; ``total`` sums the results.

    The rows' first dimension is split over ``axis_name``, or their leading dimensions as their
    types say. Gradients of what is shared are summed over the devices once, at the end. Inside a
    shard_map over these axes the rows are the device's own part already; outside, this is one, in
    which all other axes stay as they are.
    """

    def run(shared: Any, rows: Any) -> Any:
        leaves = jax.tree.leaves(rows)
        outer = axis_names(axis_name) if is_bound(axis_name) else ()
        lead = _leading_names(leaves, row_ndim)
        mesh = _mesh(leaves) if lead else None
        if axis_name is not None and not outer and not lead:
            _require_in_mesh(axis_name)
            lead = (axis_name,)
        over = tuple(name for names in lead for name in axis_names(names))

        def local(shared: Any, rows: Any) -> Any:
            result = fn(shared, rows)
            if not total or not (outer or over):
                return result
            known = leaves[0], *jax.tree.leaves(result)
            require_split("rows", axis_name, *known, option="row_axis_name")
            return jax.lax.psum(result, (*outer, *over))

        if not over:
            with _in_mesh_of(jax.tree.leaves((shared, rows))):
                return local(shared, rows)
        split = PartitionSpec(*lead)
        if mesh is not None:
            shared = jax.tree.map(lambda x: _whole(x, over), shared)
            rows = jax.tree.map(lambda x: _placed(x, mesh, split), rows)
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(PartitionSpec(), split),
            out_specs=PartitionSpec() if total else split,
            axis_names=set(over),
        )(shared, rows)

    return run


def _leading_names(leaves: list[Any], row_ndim: int) -> Names:
    """How the rows are split, as the first array says that is."""
    splits = (_names(x)[:row_ndim] for x in leaves)
    return next((names for names in splits if any(names)), ())


def _in_mesh_of(arrays: list[Any]) -> AbstractContextManager[Any]:
    """The Explicit mesh that whole arrays have, where there is none in context.

    What a loop starts from is made anew, and has to be of the same mesh.
    """
    meshes = (jax.typeof(x).sharding.mesh for x in arrays if isinstance(x, jax.Array))
    mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
    if mesh is None or not jax.sharding.get_abstract_mesh().empty:
        return nullcontext()
    return jax.sharding.use_abstract_mesh(mesh)


def _require_in_mesh(axis_name: AxisName) -> None:
    known = jax.sharding.get_abstract_mesh().axis_names
    for name in axis_names(axis_name):
        if name not in known:
            rule = "mesh axes of a surrounding shard_map or of the mesh in context"
            raise ValueError(f"row_axis_name must name {rule}, got {name!r}")


def _placed(array: Any, mesh: Any, spec: PartitionSpec) -> Any:
    return jax.sharding.reshard(array, NamedSharding(mesh, spec))


def _whole(array: Any, over: tuple[str, ...]) -> Any:
    """What all rows share, no longer split over the rows' axes, as FSDP's params are."""
    if not any(names := _names(array)):
        return array
    if beside := {name for of_dim in names for name in axis_names(of_dim)} - set(over):
        axes = ", ".join(sorted(beside))
        raise ValueError(f"params must be whole along {axes}, or split inside a shard_map")
    return _placed(array, _mesh([array]), PartitionSpec())


# What a type says.


def _names(array: Any) -> Names:
    """For each dimension the Explicit mesh axes over which an array is split, or None."""
    if not isinstance(array, jax.Array):
        return ()
    sharding = jax.typeof(array).sharding
    return tuple(sharding.spec) if sharding.mesh.explicit_axes else ()


def _mesh(arrays: Iterable[Any]) -> Any:
    """The mesh of the first array that is split over one, or has one."""
    typed = [x for x in arrays if isinstance(x, jax.Array)]
    first = next((x for x in typed if any(_names(x))), typed[0])
    return jax.typeof(first).sharding.mesh
