# %% [markdown]
# # One device or eight: a head whose classes and rows are sharded
#
# The same training step on one device and on a mesh of eight, (data, model) = (4, 2): the tokens of
# a batch are split four ways and the words of the vocabulary two ways. No device ever has a whole
# row of logits, and the losses are the same.
#
# Run it with `pip install -e '.[examples]' && python examples/mesh.py`. It splits the CPU into
# eight devices; on a machine with TPUs or GPUs it uses those. On a pod slice, start the same file
# on every host with `--pod`: only the mesh changes, which then has all devices of the pod.

# %%
import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from _collectives import collectives
from _language import encode, read_tokens
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

import jaxlogits as jl

Array = jax.Array
MIB = 2**20


class Options(NamedTuple):
    """Sizes; the defaults take half a minute on two cores."""

    num_files: int = 300
    vocabulary_size: int = 32_768
    features: int = 64
    batch_size: int = 2048
    steps: int = 40


DEFAULT = Options()

# %% [markdown]
# ## The model, and where its weights are
#
# The embeddings of the last four tokens, mixed by one layer, are scored against a kernel `[D, K]`.
# The classes of the kernel are split over `model`, and so are the rows of the embedding, which are
# words as well. Everything with a row for each token is split over `data`.

# %%
CONTEXT = 4


class Model(NamedTuple):
    """K words in D numbers each."""

    embedding: Array  # [K, D]
    mix: Array  # [CONTEXT * D, D]
    kernel: Array  # [D, K]


WEIGHTS = Model(P("model", None), P(), P(None, "model"))
BATCH = (P("data"), P("data"))


def make_model(options: Options) -> Model:
    """Small random weights."""
    size, features = options.vocabulary_size, options.features
    keys = jax.random.split(jax.random.key(0), 3)
    mix = jax.random.normal(keys[1], [CONTEXT * features, features]) / (CONTEXT * features) ** 0.5
    return Model(
        0.1 * jax.random.normal(keys[0], [size, features]),
        mix,
        jax.random.normal(keys[2], [features, size]) / features**0.5,
    )


def place(mesh: Mesh, tree: object, specs: object) -> object:
    """The arrays on the mesh; on a pod each host puts what its own devices hold."""

    def put(x: Array, spec: P) -> Array:
        whole = np.asarray(x)
        return jax.make_array_from_callback(
            whole.shape, NamedSharding(mesh, spec), whole.__getitem__
        )

    return jax.tree.map(put, tree, specs)


# %% [markdown]
# ## The loss
#
# Inside `shard_map` every device has its slice of the tokens and its slice of the classes. Labels
# are indices into the whole vocabulary. `axis_name` names the mesh axis over which the classes are
# split, `row_axis_name` the one over which the rows are split: the mean is over all tokens, and the
# gradients are complete. That is all that a mesh adds to the loss.


# %%
def split_loss(hidden: Array, kernel: Array, labels: Array) -> Array:
    """The mean cross entropy over all tokens, on each device."""
    return jl.linear_softmax_cross_entropy(
        hidden, kernel, labels, axis_name="model", row_axis_name="data"
    )


OPTIMIZER = optax.adam(3e-3)


class State(NamedTuple):
    """What a step changes."""

    model: Model
    optimizer: optax.OptState


def step(mesh: Mesh, state: State, context: Array, labels: Array) -> tuple[State, Array]:
    """One step of training, which also gives the loss before it."""
    head = jax.shard_map(
        split_loss, mesh=mesh, in_specs=(P("data"), WEIGHTS.kernel, P("data")), out_specs=P()
    )

    def loss(model: Model) -> Array:
        read = model.embedding[context].reshape(len(context), -1)
        return head(jnp.tanh(10 * (read @ model.mix)), model.kernel, labels)

    value, gradient = jax.value_and_grad(loss)(state.model)
    updates, optimizer = OPTIMIZER.update(gradient, state.optimizer)
    return State(optax.apply_updates(state.model, updates), optimizer), value


# %% [markdown]
# ## Training on a mesh
#
# The compiled program shows what it sends and what each device holds. (That includes the lookup of
# the embedding and its gradient, which XLA shards on its own.)


# %%
class Run(NamedTuple):
    """What came out of training on one mesh."""

    losses: list[float]
    sent: dict[str, int]  # how often each kind of collective runs in one step
    device_bytes: int  # arguments and temporary arrays of one device


def draw_batch(text: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places in the text: the tokens before, and the token that follows."""
    places = np.random.default_rng(seed).integers(CONTEXT, len(text), size)
    return text[places[:, None] + np.arange(-CONTEXT, 0)], text[places]


def train(mesh: Mesh, text: np.ndarray, options: Options) -> Run:
    """The losses, and what the program of a step takes."""
    model = place(mesh, make_model(options), WEIGHTS)
    state = State(model, jax.jit(OPTIMIZER.init)(model))
    batches = (
        place(mesh, draw_batch(text, options.batch_size, seed), BATCH)
        for seed in range(options.steps)
    )
    first = place(mesh, draw_batch(text, options.batch_size, 0), BATCH)
    program = jax.jit(step, static_argnums=0).lower(mesh, state, *first).compile()
    memory = program.memory_analysis()
    losses = []
    title = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    for batch in tqdm(batches, desc=title, total=options.steps, unit="step"):
        state, value = program(state, *batch)
        losses.append(float(value))
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return Run(losses, dict(collectives(program.as_text())), held)


# %% [markdown]
# ## The figure: who holds what

# %%
COLORS = plt.get_cmap("tab20c").colors


def show_owners(axes: plt.Axes, title: str, spec: P, data: int, model: int) -> None:
    """A matrix, each part in the colour of the devices that hold it, and their numbers."""
    rows = {"data": data, "model": model, None: 1}
    split = [rows[name] for name in (*spec, None, None)[:2]]
    devices = np.arange(data * model).reshape(data, model)
    for i in range(split[0]):
        for j in range(split[1]):
            at = {name: k for name, k in zip(spec, (i, j), strict=False) if name}
            owners = devices[at.get("data", slice(None)), at.get("model", slice(None))]
            corner, size = (j / split[1], 1 - (i + 1) / split[0]), (1 / split[1], 1 / split[0])
            color = COLORS[4 * j + i % 4]
            axes.add_patch(plt.Rectangle(corner, *size, facecolor=color, edgecolor="white"))
            label = ", ".join(map(str, np.ravel(owners))) if np.size(owners) < 8 else "all"
            middle = (corner[0] + size[0] / 2, corner[1] + size[1] / 2)
            axes.text(*middle, label, ha="center", va="center", fontsize=9)
    axes.set_title(title, fontsize=10)
    axes.set_aspect("auto")
    axes.axis("off")


def draw(path: Path, runs: dict[str, Run]) -> None:
    """Save who holds what on (data 4, model 2), and the losses of all meshes."""
    figure = plt.figure(figsize=(5.2, 6), layout="constrained")
    upper, lower = figure.subfigures(2, 1)
    panels = upper.subplots(1, 3, width_ratios=[1, 2, 2])
    curve = lower.subplots()
    matrices = {
        "hidden [N, D]": P("data", None),
        "kernel [D, K]": P(None, "model"),
        "logits [N, K]": P("data", "model"),
    }
    for axes, (title, spec) in zip(panels, matrices.items(), strict=True):
        show_owners(axes, title, spec, 4, 2)
    styles = [("#c8442d", 5, "-"), ("#1d3c5e", 1.5, "--")]
    for (name, run), (color, width, line) in zip(runs.items(), styles, strict=False):
        curve.plot(run.losses, color=color, linewidth=width, linestyle=line, label=name)
    curve.set(xlabel="step", ylabel="loss")
    curve.set_title("The same losses", fontsize=10)
    curve.legend(frameon=False)
    curve.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)


# %% [markdown]
# ## Putting it together


# %%
def make_mesh(devices: list[jax.Device]) -> Mesh:
    """All devices, two for the classes if there are as many, the rest for the rows."""
    model = 2 if len(devices) % 2 == 0 else 1
    shape = (len(devices) // model, model)
    return jax.make_mesh(shape, ("data", "model"), (AxisType.Auto,) * 2, devices=devices)


def main(options: Options = DEFAULT, figure: Path = Path("examples/output/sharding.png")) -> float:
    """Train on one device and on all; returns the largest relative difference of the losses."""
    text = encode(read_tokens(options.num_files), options.vocabulary_size)
    devices = jax.devices()
    meshes = [make_mesh(devices)]
    if jax.process_count() == 1:
        meshes.insert(0, make_mesh(devices[:1]))
    runs = {}
    for mesh in meshes:
        count = mesh.devices.size
        name = f"{count} device{'s' if count > 1 else ''}"
        run = runs[name] = train(mesh, text, options)
        sent = ", ".join(f"{n} {kind}" for kind, n in sorted(run.sent.items())) or "nothing"
        print(f"{name}: loss {run.losses[0]:.4f} -> {run.losses[-1]:.4f}")
        print(f"  each holds {run.device_bytes / MIB:.1f} MiB; sent in a step: {sent}")
    losses = np.array([run.losses for run in runs.values()])
    difference = float(np.max(np.abs(losses - losses[0]) / losses[0]))
    print(f"largest relative difference at any step: {difference:.1e}")
    if jax.process_index() == 0:
        draw(figure, runs)
        print(f"\nfigure: {figure}")
    return difference


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a head that is split over a mesh.")
    parser.add_argument("--steps", type=int, default=DEFAULT.steps)
    parser.add_argument("--figure", type=Path, default=Path("examples/output/sharding.png"))
    parser.add_argument("--pod", action="store_true", help="started on every host of a pod")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)  # where there is nothing but a CPU
    if arguments.pod:
        jax.distributed.initialize()
    main(DEFAULT._replace(steps=arguments.steps), arguments.figure)
