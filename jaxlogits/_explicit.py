"""Explicit meshes: arrays whose types say how they are split, so that nobody else has to.

Under a mesh whose axes are Explicit, ``jax.typeof(x).sharding`` knows over which of them each
dimension is split. A function then runs under ``shard_map`` on that mesh, with ``axis_name`` and
``row_axis_name`` as its arguments are split, and so are its results and gradients.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxlogits._mesh import axis_names
from jaxlogits._typing import AxisName

P = ParamSpec("P")
T = TypeVar("T")
Arguments = dict[str, Any]
Names = tuple[Any, ...]  # for each dimension the mesh axes over which it is split, or None


class Layout(NamedTuple):
    """How the arguments of a function are split."""

    mesh: Any
    full: Names  # the dimensions of the first argument
    rows: Names  # those that count rows
    classes: AxisName
    options: Arguments  # what tells the function so

    def spec(self, name: str, shape: tuple[int, ...]) -> PartitionSpec:
        """How an argument or a result of ``shape`` is split; what is broadcast is not."""
        if name.startswith("kernel"):
            return PartitionSpec(None, self.classes)
        if name.startswith(("bias", "class_weights")):
            return PartitionSpec(self.classes)
        names = self.full if len(shape) == len(self.full) else self.rows
        if name == "where" and "row_axis_name" not in self.options:
            names = self.full
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

    def call(arrays: Arguments, options: Arguments) -> Any:
        return fn(**others | arrays | options)

    # Raises what fn does, in the words for the whole arrays.
    types = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in arrays.items()}
    result = jax.eval_shape(functools.partial(call, options={}), types)
    specs = {k: layout.spec(k, v.shape) for k, v in arrays.items()}
    on_devices = jax.shard_map(
        functools.partial(call, options=layout.options),
        mesh=layout.mesh,
        in_specs=(specs,),
        out_specs=layout.spec("", result.shape),
        axis_names=set(layout.mesh.explicit_axes if layout.mesh.manual_axes else ()),  # or all
    )

    return on_devices({k: _placed(v, layout.mesh, specs[k]) for k, v in arrays.items()})


def split_logits(arguments: Arguments) -> Layout | None:
    """The layout of a function whose first argument is logits."""
    logits, axis = next(iter(arguments.values())), arguments["axis"]
    full = _names(logits)
    axes = axis if isinstance(axis, tuple) else (axis,)
    if not any(full) or not all(-len(full) <= a < len(full) for a in axes):
        return None
    classes = [a % len(full) for a in axes]
    # Several dimensions of classes become one, in which only a split of the first is a slice.
    full = tuple(names if d not in classes[1:] else None for d, names in enumerate(full))
    rows = tuple(names for d, names in enumerate(full) if d not in classes)
    axis_name = full[classes[0]]
    return Layout(_mesh(logits), full, rows, axis_name, {"axis_name": axis_name})


def split_layer(arguments: Arguments) -> Layout | None:
    """The layout of a function whose first arguments are hidden and the kernel."""
    hidden, kernel = list(arguments.values())[:2]
    of_hidden, of_kernel = _names(hidden), _names(kernel)
    if len(jnp.shape(hidden)) < 1 or len(jnp.shape(kernel)) != 2:
        return None
    mesh = _mesh(hidden if any(of_hidden) else kernel)
    rows = of_hidden[:-1] or (None,) * (jnp.ndim(hidden) - 1)
    classes = of_kernel[1] if of_kernel else None
    over = tuple(name for names in rows for name in axis_names(names))
    options = {"axis_name": classes, "row_axis_name": over or None}
    return Layout(mesh, (*rows, None), rows, classes, options)


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
        mesh, lead = None, (axis_name,)
        if axis_name is None:
            first = next(iter(jax.tree.leaves(rows)), None)
            lead = _names(first)[:row_ndim]
            if not any(lead):
                return fn(shared, rows)
            mesh = _mesh(first)
        over = tuple(name for names in lead for name in axis_names(names))

        def local(shared: Any, rows: Any) -> Any:
            result = fn(shared, rows)
            return jax.lax.psum(result, over) if total else result

        if _is_bound(over):
            return local(shared, rows)
        if mesh is not None:
            shared = jax.tree.map(lambda x: _whole(x, over), shared)
            rows = jax.tree.map(lambda x: _placed(x, mesh, PartitionSpec(*lead)), rows)
        split = PartitionSpec(*lead)
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(PartitionSpec(), split),
            out_specs=PartitionSpec() if total else split,
            axis_names=set(over),
        )(shared, rows)

    return run


def _is_bound(names: tuple[str, ...]) -> bool:
    """Whether the caller runs on each device along these mesh axes."""
    try:
        jax.lax.axis_size(names)
    except NameError:
        return False
    return True


def _placed(array: Any, mesh: Any, spec: PartitionSpec) -> Any:
    return jax.sharding.reshard(array, NamedSharding(mesh, spec))


def _whole(array: Any, over: tuple[str, ...]) -> Any:
    """What all rows share, no longer split over the rows' axes, as FSDP's params are."""
    if not any(names := _names(array)):
        return array
    if beside := {name for of_dim in names for name in axis_names(of_dim)} - set(over):
        axes = ", ".join(sorted(beside))
        raise ValueError(f"params must be whole along {axes}, or split inside a shard_map")
    return _placed(array, _mesh(array), PartitionSpec())


def _names(array: Any) -> Names:
    """For each dimension the Explicit mesh axes over which an array is split, or None."""
    if not isinstance(array, jax.Array):
        return ()
    sharding = jax.typeof(array).sharding
    return tuple(sharding.spec) if sharding.mesh.explicit_axes else ()


def _mesh(array: Any) -> Any:
    return jax.typeof(array).sharding.mesh
