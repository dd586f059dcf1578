# %% [markdown]
# # A big vocabulary on a TPU
#
# A language model has one logit for each token of a batch and each word of the vocabulary. Here
# that array would be the largest by far. We first ask the compiler how much memory a training step
# takes with and without it, and then train.
#
# In Colab, choose a TPU under *Runtime, Change runtime type*. It also runs on GPUs, or with smaller
# sizes on a CPU.

# %%
# Installs what is missing: jaxlogits from the clone that contains this notebook, otherwise from the
# package index (once there is a release; until then, open the notebook in a clone).
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

needed = ["jaxlogits", "matplotlib", "optax", "tqdm"]
if missing := [name for name in needed if find_spec(name) is None]:
    places = [Path.cwd(), *Path.cwd().parents]
    clones = [path for path in places if (path / "jaxlogits" / "py.typed").exists()]
    sources = [str(clones[0]) if clones and name == "jaxlogits" else name for name in missing]
    command = [sys.executable, "-m", "pip", "install", "-q", *sources]
    if subprocess.run(command, check=False).returncode:
        raise RuntimeError("pip failed. Before the first release, open this notebook in a clone.")

# %%
import re
import sysconfig
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm.auto import tqdm

import jaxlogits as jl

# %% [markdown]
# ## The mesh
#
# All chips form one axis, "data": each takes a part of every batch. The parameters are on all of
# them.

# %%
devices = jax.devices()
mesh = jax.make_mesh((len(devices),), ("data",))
replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
print(f"{len(devices)} x {devices[0].device_kind}")

on_cpu = devices[0].platform == "cpu"
vocabulary, features, tokens_per_chip = (32_768, 64, 512) if on_cpu else (131_072, 1024, 8192)

# %% [markdown]
# ## The loss, in two ways
#
# `token_loss` is an ordinary function of some tokens. `plain_sum` calls it with all of a chip's
# tokens at once; `blockwise_sum` calls it with one block at a time and computes the gradients in
# the same pass. Each chip sums over its own tokens, and one `psum` adds up the chips. Layers are
# computed in bfloat16, the loss in float32.


# %%
def token_loss(head, hidden, labels):
    """Cross entropy of each token: [tokens, features] and [tokens] to [tokens]."""
    kernel = head.astype(jnp.bfloat16)
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return jl.softmax_cross_entropy_with_integer_labels(logits, labels)


def plain_sum(head, hidden, labels):
    """Over all tokens at once."""
    return token_loss(head, hidden, labels).sum()


blockwise_sum = jl.blockwise_sum(token_loss)


def mean_loss(sum_of_losses, params, context, labels):
    """Of a language model that looks at the last token only."""

    @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P())
    def of_all_chips(params, context, labels):
        hidden = jnp.tanh(params["embedding"][context] @ params["mix"]).astype(jnp.bfloat16)
        return jax.lax.psum(sum_of_losses(params["head"], hidden, labels), "data")

    return of_all_chips(params, context, labels) / len(labels)


# %% [markdown]
# ## Memory before and after
#
# A compiled program knows how much temporary memory it needs on each chip. Nothing runs here;
# shapes are enough.


# %%
def params_like(make):
    """The parameters, each made by ``make(shape)``."""
    return {
        "embedding": make((vocabulary, features)),
        "mix": make((features, features)),
        "head": make((features, vocabulary)),
    }


def temporary_bytes(sum_of_losses, tokens):
    """Of a step with so many tokens on each chip, on one of the chips."""
    params = params_like(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=replicated)
    )
    batch = jax.ShapeDtypeStruct([tokens * len(devices)], jnp.int32, sharding=split)
    step = jax.jit(jax.value_and_grad(partial(mean_loss, sum_of_losses)))
    return step.lower(params, batch, batch).compile().memory_analysis().temp_size_in_bytes


largest = 8192
sizes = [largest // 8, largest // 4, largest // 2, largest]
ways = {"plain": plain_sum, "blockwise": blockwise_sum}
needs = {name: [temporary_bytes(way, n) / 2**20 for n in sizes] for name, way in ways.items()}
print("tokens of a chip ", *(f"{n:7}" for n in sizes))
for name, mebibytes in needs.items():
    print(f"{name:>9}, MiB   ", *(f"{m:7.0f}" for m in mebibytes))

# %%
figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
for (name, mebibytes), line in zip(needs.items(), ("o--", "s-"), strict=True):
    axes.plot(sizes, mebibytes, line, label=name)
axes.set(xlabel="tokens of a chip", ylabel="temporary memory, MiB", xticks=sizes)
axes.set_title(f"A training step with {vocabulary:,} words")
axes.set_ylim(bottom=0)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Training
#
# The text is Python's own standard library; each step takes different parts of it.

# %%
root = Path(sysconfig.get_path("stdlib"))
text = "\n".join(path.read_text("utf-8", "ignore") for path in sorted(root.glob("*.py")))
words = re.findall(r"[A-Za-z_]\w*|\S", text)
ranked = [word for word, _ in Counter(words).most_common(vocabulary - 1)]
numbers = {word: number for number, word in enumerate(ranked, start=1)}
tokens = np.array([numbers.get(word, 0) for word in words], np.int32)
print(f"{len(tokens):,} tokens")


optimizer = optax.adam(1e-2)


@partial(jax.jit, donate_argnums=(0, 1))
def step(params, state, context, labels):
    """Learn from a batch; the loss before it."""
    loss_of = partial(mean_loss, blockwise_sum)
    loss, gradients = jax.value_and_grad(loss_of)(params, context, labels)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), state, loss


random = np.random.default_rng(0)
params = params_like(lambda shape: random.normal(0, features**-0.5, shape).astype(np.float32))
params = jax.device_put(params, replicated)
state = jax.jit(optimizer.init)(params)
losses = []
for _ in tqdm(range(25)):
    places = random.integers(len(tokens) - 1, size=tokens_per_chip * len(devices))
    batch = jax.device_put((tokens[places], tokens[places + 1]), split)
    params, state, loss = step(params, state, *batch)
    losses.append(loss)
print("loss:", *(f"{loss:.2f}" for loss in losses[::6]))

# %% [markdown]
# What the chip itself reports (a CPU doesn't): peak memory in use, including the parameters, their
# gradients and the text.

# %%
if stats := devices[0].memory_stats():
    print(f"{stats['peak_bytes_in_use'] / 2**20:.0f} MiB of {stats['bytes_limit'] / 2**20:.0f}")
