"""Time, memory, accuracy and transforms of a linear head's loss, against those who fuse it too.

Run: python benchmarks/linear_head.py [--parts PART ...] [--torch-python PYTHON]

Peers, none of which the library needs: pip install optax jax-cce tokamax, and torch in
this Python or another one. Parts already measured are kept in build/linear_head.json, so that the
script can be stopped and run again; it writes benchmarks/results/linear-head-cpu.md from what is
there, and docs/at_a_glance.py draws from that.

Every function gives the mean loss and its gradients in hidden and kernel. Peers that want the
kernel as [K, D] get it so. torch is timed in a process of its own, in turn with optax there.
"""

import argparse
import functools
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _measure import (
    compile_function,
    interleaved,
    machine,
    peak_growth,
    table,
    versions,
    write_result,
)

ROOT = Path(__file__).parents[1]
STORE = ROOT / "build" / "linear_head.json"
MIB = 2**20
PARTS = ("times", "resident", "growth", "curvature", "transforms", "torch")


class Shape(NamedTuple):
    """N × D × K, and how often it is timed."""

    rows: int
    features: int
    classes: int
    rounds: int  # fewer where a call takes seconds

    def __str__(self) -> str:
        """N × D × K."""
        return f"{self.rows} × {self.features} × {self.classes}"


SHAPES = [
    Shape(4096, 512, 32000, 7),
    Shape(1000, 333, 50257, 9),
    Shape(8192, 256, 65536, 3),
    Shape(2048, 1024, 131072, 3),
]
DTYPES = ("float32", "bfloat16")
NUMBERS_OF_ROWS = (1024, 2048, 4096, 8192, 16384)


# Who is compared. The first one keeps all logits, and is what the others are measured by.


def optax_loss(hidden: Any, kernel: Any, labels: Any) -> Any:
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels).mean()


def jaxlogits_loss(hidden: Any, kernel: Any, labels: Any) -> Any:
    import jaxlogits as jl

    return jl.linear_softmax_cross_entropy(hidden, kernel, labels)


def cce_loss(hidden: Any, kernel: Any, labels: Any) -> Any:
    from jax_cce import linear_cross_entropy

    return linear_cross_entropy(hidden, kernel, labels)


def tokamax_loss(hidden: Any, kernel: Any, labels: Any, implementation: str) -> Any:
    import tokamax

    return tokamax.linear_softmax_cross_entropy_loss(
        hidden, labels, kernel, reduction="mean", implementation=implementation
    )


def scan_loss(hidden: Any, kernel: Any, labels: Any) -> Any:
    """What people write by hand: a scan over blocks of rows, each of which is checkpointed."""
    import optax

    num_blocks = -(-hidden.shape[0] // 512)
    padding = num_blocks * 512 - hidden.shape[0]
    blocks = (
        jnp.pad(hidden, ((0, padding), (0, 0))).reshape(num_blocks, 512, -1),
        jnp.pad(labels, (0, padding)).reshape(num_blocks, 512),
        (jnp.arange(num_blocks * 512) < hidden.shape[0]).reshape(num_blocks, 512),
    )

    @jax.checkpoint
    def step(total: Any, block: Any) -> Any:
        rows, targets, counts = block
        logits = jnp.matmul(rows, kernel, preferred_element_type=jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return total + jnp.sum(jnp.where(counts, losses, 0.0)), None

    return jax.lax.scan(step, jnp.zeros([]), blocks)[0] / hidden.shape[0]


class Peer(NamedTuple):
    """A loss of hidden, kernel and labels."""

    loss: Callable[..., Any]
    classes_first: bool = False  # whether the kernel is [K, D]


PEERS = {
    "optax on hidden @ kernel": Peer(optax_loss),
    "jaxlogits": Peer(jaxlogits_loss),
    "checkpointed scan": Peer(scan_loss),
    "jax-cce": Peer(cce_loss, classes_first=True),
    "tokamax chunked_xla": Peer(functools.partial(tokamax_loss, implementation="chunked_xla")),
    "tokamax xla": Peer(functools.partial(tokamax_loss, implementation="xla")),
}
KEEPS_ALL = ("optax on hidden @ kernel", "tokamax xla")  # at the large shapes, one of them will do


def gradients(name: str) -> Callable[..., Any]:
    return jax.value_and_grad(PEERS[name].loss, argnums=(0, 1))


def arguments(shape: Shape, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """hidden, kernel and labels; the logits are about normal with deviation 2."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((shape.rows, shape.features), np.float32)
    kernel = rng.standard_normal((shape.features, shape.classes), np.float32)
    kernel *= 2 / shape.features**0.5
    labels = rng.integers(shape.classes, size=shape.rows).astype(np.int32)
    hidden, kernel = (np.asarray(jnp.asarray(x, dtype)) for x in (hidden, kernel))
    return hidden, kernel, labels


def arguments_for(name: str, args: Any) -> list[Any]:
    hidden, kernel, labels = args
    kernel = kernel.T.copy() if PEERS[name].classes_first else kernel
    return [jax.device_put(x) for x in (hidden, kernel, labels)]


# Time, temporary memory and accuracy.


def exact(args: Any) -> tuple[float, Any, Any]:
    """The loss and its gradients in float64, a block of rows at a time."""
    hidden, kernel, labels = args
    loss, parts, dkernel = 0.0, [], np.zeros(kernel.shape)
    wide = kernel.astype(np.float64)
    for start in range(0, len(hidden), 256):
        rows, targets = hidden[start : start + 256].astype(np.float64), labels[start : start + 256]
        logits = rows @ wide
        logits -= logits.max(axis=1, keepdims=True)
        at_labels = logits[np.arange(len(rows)), targets]
        probs = np.exp(logits, out=logits)
        sums = probs.sum(axis=1, keepdims=True)
        loss += float(np.sum(np.log(sums[:, 0]) - at_labels))
        probs /= sums
        probs[np.arange(len(rows)), targets] -= 1
        parts.append(probs @ wide.T)
        dkernel += rows.T @ probs
    return loss / len(hidden), np.concatenate(parts) / len(hidden), dkernel / len(hidden)


def errors(result: Any, want: Any, classes_first: bool) -> list[float]:
    """The relative error of the loss, and that of the worse gradient in the Euclidean norm."""
    loss, (dhidden, dkernel) = result
    dkernel = dkernel.T if classes_first else dkernel
    pairs = [(dhidden, want[1]), (dkernel, want[2])]
    norms = [np.linalg.norm(np.asarray(g, np.float64) - w) / np.linalg.norm(w) for g, w in pairs]
    return [abs(float(loss) / want[0] - 1), float(max(norms))]


def measure_times(shape: Shape, dtype: str) -> dict[str, Any]:
    args = arguments(shape, dtype)
    want = exact(args)
    found: dict[str, Any] = {}
    calls: dict[str, list[Callable[[], Any]]] = {"both": [], "forward": []}
    is_large = shape.rounds < 5
    peers = {name: peer for name, peer in PEERS.items() if not is_large or name != KEEPS_ALL[1]}
    for name, peer in peers.items():
        mine = arguments_for(name, args)
        both = compile_function(gradients(name), *mine)
        forward = compile_function(peer.loss, *mine)
        calls["both"].append(functools.partial(both.call, *mine))
        calls["forward"].append(functools.partial(forward.call, *mine))
        loss_error, gradient_error = errors(both.call(*mine), want, peer.classes_first)
        found[name] = {
            "temp": both.temp_bytes / MIB,
            "forward temp": forward.temp_bytes / MIB,
            "loss error": loss_error,
            "gradient error": gradient_error,
        }
    if is_large:
        del calls["forward"]
    for kind, functions in calls.items():
        timings = interleaved(functions, rounds=shape.rounds, budget=600)
        for name, timing in zip(peers, timings, strict=True):
            found[name][kind] = [str(timing), timing.seconds]
    return found


# Peak resident memory, in a process for each.

SETUP = """
import sys
sys.path[:0] = {path!r}
import jax, linear_head
name, shape = {name!r}, linear_head.Shape(*{shape!r})
args = linear_head.arguments_for(name, linear_head.arguments(shape, {dtype!r}))
call = jax.jit(linear_head.gradients(name)).lower(*args).compile()
"""


def measure_resident(shape: Shape, dtype: str) -> dict[str, float]:
    path = [str(ROOT), str(ROOT / "benchmarks")]
    setups = {
        name: SETUP.format(path=path, name=name, shape=tuple(shape), dtype=dtype) for name in PEERS
    }
    run = "jax.block_until_ready(call(*args))"
    return {name: peak_growth(setup, run) / MIB for name, setup in setups.items()}


def measure_growth() -> dict[str, list[float]]:
    """Temporary memory for each number of rows, from the compiler."""
    found: dict[str, list[float]] = {name: [] for name in PEERS}
    for name, peer in PEERS.items():
        for rows in NUMBERS_OF_ROWS:
            kernel = (32000, 512) if peer.classes_first else (512, 32000)
            types = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((rows, 512), kernel)]
            types.append(jax.ShapeDtypeStruct((rows,), jnp.int32))
            found[name].append(compile_function(gradients(name), *types).temp_bytes / MIB)
    return found


def measure_curvature() -> dict[str, dict[str, str]]:
    """Temporary memory of a Hessian-vector product in each order, from the compiler."""
    found: dict[str, dict[str, str]] = {}
    for name, peer in PEERS.items():
        kernel = (32000, 512) if peer.classes_first else (512, 32000)
        types = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4096, 512), kernel)]
        labels = jnp.zeros([4096], jnp.int32)
        every = transforms(functools.partial(peer.loss, labels=labels))
        found[name] = {}
        for key in [key for key in every if key.startswith(("jvp", "HVP"))]:
            try:
                found[name][key] = f"{compile_function(every[key], *types).temp_bytes / MIB:.0f}"
            except Exception as error:  # whatever a peer raises is its answer
                found[name][key] = f"no ({type(error).__name__})"
    return found


# Which transforms each survives, with the right result.


def transforms(loss: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Functions of hidden and kernel, each by another transform."""
    grad = jax.grad(loss, argnums=(0, 1))

    def along(h: Any, w: Any) -> tuple[Any, Any]:
        return jnp.cos(h), jnp.sin(w)

    def directional(h: Any, w: Any) -> Any:
        return jax.jvp(loss, (h, w), along(h, w))[1]

    def inner(h: Any, w: Any) -> Any:
        dots = [jnp.vdot(g, t) for g, t in zip(grad(h, w), along(h, w), strict=True)]
        return dots[0] + dots[1]

    def exported(h: Any, w: Any) -> Any:
        whole = jax.export.export(jax.jit(grad))(h, w)
        return jax.export.deserialize(whole.serialize()).call(h, w)

    def sharded(h: Any, w: Any) -> Any:
        mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        spec = jax.sharding.PartitionSpec
        one = jax.shard_map(
            lambda h, w: jax.lax.pmean(loss(h, w), "data"),
            mesh=mesh,
            in_specs=(spec("data"), spec()),
            out_specs=spec(),
        )
        return jax.jit(jax.grad(one, argnums=(0, 1)))(h, w)

    return {
        "grad": grad,
        "vmap of grad over hidden": lambda h, w: jax.vmap(grad, (0, None))(jnp.stack([h, -h]), w),
        "vmap of grad over kernel": lambda h, w: jax.vmap(grad, (None, 0))(h, jnp.stack([w, -w])),
        "jvp": directional,
        "linearize": lambda h, w: jax.linearize(loss, h, w)[1](*along(h, w)),
        "HVP, forward over reverse": lambda h, w: jax.jvp(grad, (h, w), along(h, w))[1],
        "HVP, reverse over reverse": jax.grad(inner, argnums=(0, 1)),
        "HVP, reverse over forward": jax.grad(directional, argnums=(0, 1)),
        "grad of checkpoint": jax.grad(jax.checkpoint(loss), argnums=(0, 1)),
        "shard_map, types checked": sharded,
        "export": exported,
    }


def measure_transforms() -> dict[str, dict[str, str]]:
    # 2048 classes, because tokamax is wrong for other numbers than multiples of it.
    hidden, kernel, labels = map(jnp.asarray, arguments(Shape(64, 32, 2048, 0), "float32"))
    found: dict[str, dict[str, str]] = {}
    with jax.enable_x64(True):
        wide = hidden.astype(jnp.float64), kernel.astype(jnp.float64)
        plain = transforms(functools.partial(optax_loss, labels=labels))
        plain.pop("export"), plain.pop("shard_map, types checked")
        wants = {key: jax.tree.map(np.asarray, fn(*wide)) for key, fn in plain.items()}
    for name, peer in PEERS.items():

        def loss(h: Any, w: Any, peer: Peer = peer) -> Any:
            return peer.loss(h, w.T if peer.classes_first else w, labels)

        found[name] = {
            key: verdict(fn, (hidden, kernel), wants.get(key, wants["grad"]))
            for key, fn in transforms(loss).items()
        }
    return found


def verdict(fn: Callable[..., Any], args: Any, want: Any) -> str:
    """Yes if it runs and is within 1e-3 of the right result's norm."""
    try:
        got = jax.tree.leaves(fn(*args))
    except Exception as error:  # whatever a peer raises is its answer
        return f"no ({type(error).__name__})"
    for one, other in zip(got, jax.tree.leaves(want), strict=True):
        size = np.linalg.norm(np.ravel(other))
        if not np.linalg.norm(np.ravel(one) - np.ravel(other)) <= 1e-3 * size:
            return "wrong"
    return "yes"


# torch, by another Python.


def measure_torch(python: str, shape: Shape, dtype: str) -> dict[str, str]:
    command = [python, __file__, "--torch-only", dtype, "--shapes", str(SHAPES.index(shape))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def print_torch(shape: Shape, dtype: str) -> None:
    import torch

    args = arguments(shape, dtype)
    mine = arguments_for("optax on hidden @ kernel", args)
    plain = compile_function(gradients("optax on hidden @ kernel"), *mine)
    kind = getattr(torch, dtype)
    hidden, kernel = (
        torch.tensor(x.astype(np.float32)).to(kind).requires_grad_()
        for x in (args[0], np.ascontiguousarray(args[1].T))
    )
    labels = torch.tensor(args[2].astype(np.int64))
    options = torch.nn.LinearCrossEntropyOptions()

    def fused() -> None:
        hidden.grad = kernel.grad = None
        torch.nn.functional.linear_cross_entropy(hidden, kernel, labels, options=options).backward()

    calls = [functools.partial(plain.call, *mine), fused]
    timing = interleaved(calls, rounds=shape.rounds, budget=120)[1]
    print(json.dumps({"ratio": str(timing), "versions": versions("jax", "optax", "torch")}))


# What is written.


def load() -> dict[str, Any]:
    return json.loads(STORE.read_text()) if STORE.exists() else {}


def save(key: str, value: Any) -> None:
    STORE.parent.mkdir(exist_ok=True)
    STORE.write_text(json.dumps(load() | {key: value}, indent=1))


def times_table(found: dict[str, Any], shape: Shape, dtype: str) -> str:
    key = f"{shape} {dtype}"
    columns = ["", "time, ratio to optax", "forward alone", "temp MiB", "forward temp MiB"]
    columns += ["peak resident MiB", "loss error", "gradient error"]
    resident = found.get(f"resident {key}", {})
    rows = []
    for name, one in found[f"times {key}"].items():
        size = resident.get(name)
        rows.append(
            [
                name,
                one["both"][0],
                one["forward"][0] if "forward" in one else "-",
                f"{one['temp']:.0f}",
                f"{one['forward temp']:.0f}",
                "-" if size is None else f"{size:.0f}",
                f"{one['loss error']:.0e}",
                f"{one['gradient error']:.0e}",
            ]
        )
    if f"torch {key}" in found:
        rows.append(["torch linear_cross_entropy", found[f"torch {key}"]["ratio"], *["-"] * 6])
    return table(columns, rows)


def write(found: dict[str, Any]) -> None:
    title = "# A linear head's loss: hidden @ kernel, softmax cross entropy, mean"
    peers = versions("jax", "jaxlogits", "optax", "jax-cce", "tokamax")
    where = f"{machine()}. {peers}."
    for apart in sorted({one["versions"] for key, one in found.items() if key[:6] == "torch "}):
        where += f" torch beside optax in a process of their own: {apart}."
    paragraphs = [title, where]
    paragraphs.append(
        "Value and both gradients unless it says forward. A ratio is the median of neighbouring "
        "calls in one process, with its quartiles; temp is what the compiled program asks for, "
        "peak resident how far a fresh process grows. Errors are relative to float64 with the same "
        "inputs: of the loss, and of the worse gradient by its Euclidean norm. tokamax runs with "
        "the settings that it picks on a CPU."
    )
    for shape in SHAPES:
        for dtype in DTYPES:
            if f"times {shape} {dtype}" in found:
                paragraphs += [f"## {shape}, {dtype}", times_table(found, shape, dtype)]
    if "growth" in found:
        columns = ["temp MiB by rows", *map(str, NUMBERS_OF_ROWS)]
        rows = [[name, *(f"{x:.0f}" for x in sizes)] for name, sizes in found["growth"].items()]
        paragraphs += ["## Memory over rows, 512 × 32000, float32", table(columns, rows)]
    for part, title in (
        (
            "curvature",
            "## Temp MiB of forward mode and Hessian products, 4096 × 512 × 32000, float32",
        ),
        ("transforms", "## Transforms, each run and compared with float64"),
    ):
        if part in found:
            names = list(found[part])
            keys = list(found[part][names[0]])
            rows = [[key, *(found[part][name][key] for name in names)] for key in keys]
            paragraphs += [title, table(["", *names], rows)]
    write_result("linear-head", *paragraphs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--shapes", nargs="+", type=int, default=list(range(len(SHAPES))))
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--torch-only", choices=DTYPES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.torch_only:
        print_torch(SHAPES[options.shapes[0]], options.torch_only)
        return
    each: dict[str, Callable[[Shape, str], Any]] = {
        "times": measure_times,
        "resident": measure_resident,
        "torch": functools.partial(measure_torch, options.torch_python),
    }
    for part, measure in each.items():
        for shape in [SHAPES[i] for i in options.shapes]:
            for dtype in DTYPES:
                key = f"{part} {shape} {dtype}"
                if part in options.parts and key not in load():
                    print(key, flush=True)
                    save(key, measure(shape, dtype))
    alone: dict[str, Callable[[], Any]] = {
        "growth": measure_growth,
        "curvature": measure_curvature,
        "transforms": measure_transforms,
    }
    for part, measure_part in alone.items():
        if part in options.parts and part not in load():
            print(part, flush=True)
            save(part, measure_part())
    write(load())


if __name__ == "__main__":
    logging.getLogger("absl").setLevel(logging.ERROR)  # tokamax says what it didn't tune
    main()
