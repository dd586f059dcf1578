"""What ``fuzz.py`` draws of arrays that are split over a mesh of four devices.

The oracles are those of one device: where numbers are is nobody's business but the layout's.

    python tests/fuzz.py --only "softmax on a mesh" --case 1234567
"""

import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import fuzz_calls
import fuzz_heads
import fuzz_rows
import jax
import numpy as np
from fuzz_rows import Setting
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

SUFFIX = " on a mesh"
# Of classes that two or four devices can share.
SETTINGS = (
    Setting("jit", "float32", 20, 1),
    Setting("grad", "float32", 20, 0),
    Setting("jit", "bfloat16", 20, 1),
)


class Layout(NamedTuple):
    """What rows and classes are split over, and who knows of it."""

    kind: str  # "explicit", "auto", or "manual": inside shard_map, with axis_name
    rows: Any
    classes: Any

    def spec(self, dims: str) -> P:
        """Of an array whose dimensions are "rows", "classes" and others."""
        axes = {"rows": self.rows, "classes": self.classes}
        return P(*(axes.get(dim) for dim in dims.split()))


LAYOUTS = (
    Layout("explicit", "a", "b"),
    Layout("manual", "a", "b"),
    Layout("explicit", None, ("a", "b")),
    Layout("auto", "a", "b"),
    Layout("explicit", ("b", "a"), None),
    Layout("manual", None, ("a", "b")),
)


@functools.cache
def mesh_of(kind: str) -> Any:
    axis_type = AxisType.Explicit if kind == "explicit" else AxisType.Auto
    return jax.make_mesh((2, 2), ("a", "b"), axis_types=(axis_type,) * 2)


def put(x: Any, layout: Layout, dims: str) -> Any:
    """An array in its place, inside jit."""
    mesh, axes = mesh_of(layout.kind), layout.spec(dims)
    if layout.kind == "explicit":
        return jax.sharding.reshard(x, NamedSharding(mesh, axes))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, axes))


# Functions of rows.

ROWS = {
    target.name + SUFFIX: target
    for target in fuzz_rows.TARGETS
    if target.axis and target.name != "aps_scores"
}


def dims_of(x: Any, axis: int) -> str:
    if np.ndim(x) < 2:
        return "rows" if np.ndim(x) else ""
    return "classes rows" if axis == 0 else "rows classes"


@functools.cache
def program(name: str, mode: str, axis: int, layout: Layout) -> Any:
    manual = layout.kind == "manual"
    more = {"axis_name": layout.classes} if manual else {}
    inner = fuzz_rows.function(name, axis, **more)
    is_map = not (fuzz_rows.BY_NAME[name].reduces or name == "sample")

    def fn(*args: Any) -> Any:
        dims = jax.tree.map(lambda x: dims_of(x, axis), args)
        if not manual:
            placed = jax.tree.map(lambda x, d: put(x, layout, d) if d else x, args, dims)
            return put(inner(*placed), layout, "")
        specs = jax.tree.map(layout.spec, dims)
        out = layout.spec(dims[0] if is_map else "rows")
        mesh = mesh_of(layout.kind)
        return jax.shard_map(inner, mesh=mesh, in_specs=specs, out_specs=out)(*args)

    return fuzz_rows.in_mode(fn, mode)


def check_rows(name: str, seed: int) -> list[str]:
    case = fuzz_rows.case_of(ROWS[name], seed, SETTINGS)
    layout = layout_of(name, seed)
    fn = program(case.target.name, case.mode, case.axis, layout)
    with jax.set_mesh(mesh_of(layout.kind)):
        found = fuzz_rows.checked(case, fn)
    return [f"{line.replace(case.target.name, repr(name), 1)} ({layout})" for line in found]


def layout_of(name: str, seed: int) -> Layout:
    """One for each program of a function, so that few are compiled."""
    return LAYOUTS[(zlib.crc32(name.encode()) + seed % len(SETTINGS)) % len(LAYOUTS)]


# Heads.

DIMS = {
    "hidden": "rows features",
    "kernel": "features classes",
    "bias": "classes",
    "class_where": "classes",
    "class_weights": "classes",
    "labels": "rows",
    "where": "rows",
    "weights": "rows",
    "temperature": "rows",
    "kept": "rows ids",
}
HEADS = {
    name + SUFFIX: draw for name, draw in fuzz_heads.TARGETS.items() if name.startswith("linear")
}


@functools.cache
def _placed(fn: Callable[..., Any], layout: Layout) -> Callable[..., Any]:
    def on_mesh(**args: Any) -> Any:
        return jax.tree.map(
            lambda x: put(x, layout, ""),
            fn(**{k: _put_argument(k, x, layout) for k, x in args.items()}),
        )

    return on_mesh


def _put_argument(name: str, x: Any, layout: Layout) -> Any:
    dims = DIMS.get(name.removesuffix("_p").removesuffix("_q"), "")
    if np.ndim(x) == 0 or not dims:
        return x
    classes = x.shape[dims.split().index("classes")] if "classes" in dims else 4
    # Of as many classes as can be split.
    return put(x, layout if classes % 4 == 0 else layout._replace(classes=None), dims)


def _drawn(draw: fuzz_calls.Draw, layout: Layout) -> fuzz_calls.Draw:
    def drawn(*args: Any) -> fuzz_calls.Call:
        call = draw(*args)
        return call._replace(fn=_placed(call.fn, layout))

    return drawn


def check_heads(name: str, seed: int) -> list[str]:
    layout = LAYOUTS[(0, 2, 3, 4)[seed % len(fuzz_calls.SETTINGS) % 4]]
    with jax.set_mesh(mesh_of(layout.kind)):
        found = fuzz_calls.check({name: _drawn(HEADS[name], layout)}, name, seed)
    return [line.replace(name, repr(name)) for line in found]


TARGETS = {**ROWS, **HEADS}


def check(name: str, seed: int) -> list[str]:
    """As ``fuzz.check``."""
    return check_rows(name, seed) if name in ROWS else check_heads(name, seed)
