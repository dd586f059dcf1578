# %% [markdown]
# # A big vocabulary, without its logits in memory
#
# A language model outputs one logit for each token of a batch and each word of its vocabulary. That
# array takes most of the memory of a training step: with 8192 tokens and 32,768 words it is 1 GiB,
# and the gradient needs another. Here a small model learns to predict the next token of Python
# source, with a loss that is written once and run in two ways: plain, and in blocks of tokens. Both
# compute the same numbers; the second needs a fraction of the memory.
#
# Run it with `pip install -e '.[examples]' && python examples/big_vocabulary.py`.

# %%
import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from _language import encode, read_tokens
from tqdm import tqdm

import jaxlogits as jl

Array = jax.Array
MIB = 2**20


# %% [markdown]
# ## The text
#
# Every Python comes with its standard library: more than two million tokens of code, comments and
# docstrings. A token is a name or a single symbol; the most common ones are the vocabulary, and all
# others share the number 0. (The code for this is in `_language.py`.)


# %%
class Batch(NamedTuple):
    """N places in the text."""

    context: Array  # [N, CONTEXT], the tokens before
    targets: Array  # [N], the token that follows


CONTEXT = 4


def draw_batch(text: np.ndarray, size: int, seed: int) -> Batch:
    """Places drawn at random, the same for the same seed."""
    places = np.random.default_rng(seed).integers(CONTEXT, len(text), size)
    context = text[places[:, None] + np.arange(-CONTEXT, 0)]
    return Batch(jnp.asarray(context), jnp.asarray(text[places]))


# %% [markdown]
# ## The model
#
# The embeddings of the last four tokens, mixed by one layer. The output is compared with every
# word's embedding: the table that embeds the tokens also scores them (the weights are *tied*).


# %%
class Model(NamedTuple):
    """V words in D numbers each."""

    embedding: Array  # [V, D]
    mix: Array  # [CONTEXT * D, D]
    bias: Array  # [V]


def make_model(vocabulary_size: int, features: int) -> Model:
    """Small random weights."""
    keys = jax.random.split(jax.random.key(0))
    embedding = jax.random.normal(keys[0], [vocabulary_size, features])
    mix = jax.random.normal(keys[1], [CONTEXT * features, features])
    return Model(0.1 * embedding, mix / (CONTEXT * features) ** 0.5, jnp.zeros(vocabulary_size))


def hidden_of(model: Model, context: Array) -> Array:
    """What the model makes of each place: [N, D]."""
    read = model.embedding[context].reshape(len(context), -1)
    return jnp.tanh(10 * (read @ model.mix))


# %% [markdown]
# ## The loss, once
#
# An ordinary function of some tokens that returns one number for each. No library has this
# particular loss built in: the head is tied, has a bias, and its logits are soft-capped at ±30.


# %%
def token_loss(model: Model, hidden: Array, targets: Array) -> Array:
    """Cross entropy of each token: [N]."""
    logits = hidden @ model.embedding.T + model.bias[None, :]
    logits = 30 * jnp.tanh(logits / 30)
    return jl.softmax_cross_entropy_with_integer_labels(logits, targets)


# %% [markdown]
# In the plain version it is called with all tokens at once, and its logits are an array `[N, V]`.
# With `blockwise_mean` it is called with one block of tokens at a time, and each block's gradients
# are computed before the next block overwrites its logits. That is the only change:


# %%
def plain_loss(model: Model, batch: Batch) -> Array:
    """The mean over all tokens at once."""
    return token_loss(model, hidden_of(model, batch.context), batch.targets).mean()


def blockwise_loss(model: Model, batch: Batch) -> Array:
    """The same mean, a block of tokens at a time."""
    mean = jl.blockwise_mean(token_loss)
    return mean(model, hidden_of(model, batch.context), batch.targets)


LOSSES = {"plain": plain_loss, "blockwise": blockwise_loss}
Loss = Callable[[Model, Batch], Array]

# %% [markdown]
# ## Training, and the memory it takes
#
# XLA knows before running a step how much memory it needs for temporary arrays. That is the number
# printed here: memory beyond the weights, the optimizer's state and the batch.

# %%
OPTIMIZER = optax.rmsprop(1e-3)


class State(NamedTuple):
    """What a step changes."""

    model: Model
    optimizer: optax.OptState


def make_step(loss: Loss) -> Callable[[State, Batch], tuple[State, Array]]:
    """One step of training, which also gives the loss before it."""

    def step(state: State, batch: Batch) -> tuple[State, Array]:
        value, gradient = jax.value_and_grad(loss)(state.model, batch)
        updates, optimizer = OPTIMIZER.update(gradient, state.optimizer)
        return State(optax.apply_updates(state.model, updates), optimizer), value

    return step


def memory_of(loss: Loss, state: State, batch_size: int) -> int:
    """Bytes of temporary arrays in one step; nothing is run."""
    batch = Batch(
        jax.ShapeDtypeStruct([batch_size, CONTEXT], jnp.int32),
        jax.ShapeDtypeStruct([batch_size], jnp.int32),
    )
    compiled = jax.jit(make_step(loss)).lower(state, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def train(name: str, state: State, text: np.ndarray, batch_size: int, steps: int) -> list[float]:
    """The loss before each step."""
    step = jax.jit(make_step(LOSSES[name]))
    losses = []
    progress = tqdm(range(steps), desc=f"{name}, {batch_size} tokens", unit="step")
    for seed in progress:
        state, value = step(state, draw_batch(text, batch_size, seed))
        losses.append(float(value))
        progress.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    return losses


# %% [markdown]
# ## A batch that doesn't fit
#
# Suppose that there are 768 MiB for temporary arrays. Doubling the batch doubles what the plain
# loss needs, until it is too much; the blockwise loss needs about the same for any batch.

# %%
Memory = dict[str, list[int]]


def measure_memory(state: State, sizes: list[int]) -> Memory:
    """Bytes for each loss and batch size."""
    total = tqdm(total=len(sizes) * len(LOSSES), desc="memory", unit="program")
    needs: Memory = {name: [] for name in LOSSES}
    for size in sizes:
        for name, loss in LOSSES.items():
            needs[name].append(memory_of(loss, state, size))
            total.update()
    total.close()
    return needs


def show_memory(sizes: list[int], needs: Memory, budget: int) -> int:
    """Print the table, and return the first batch size at which plain is over the budget."""
    print(f"\ntemporary memory of one step, in MiB (budget: {budget / MIB:.0f})")
    print(" tokens     plain  blockwise")
    for size, plain, blockwise in zip(sizes, needs["plain"], needs["blockwise"], strict=True):
        mark = "  <- plain doesn't fit" if plain > budget >= blockwise else ""
        print(f"{size:7}  {plain / MIB:8.1f}  {blockwise / MIB:9.1f}{mark}")
    fits = [plain <= budget for plain in needs["plain"]]
    return sizes[fits.index(False)] if False in fits else sizes[-1]


# %% [markdown]
# ## The figure

# %%
STYLES = {"plain": ("#c8442d", 5, "-"), "blockwise": ("#1d3c5e", 1.5, "--")}


def draw(
    path: Path, curves: dict[str, list[float]], sizes: list[int], needs: Memory, budget: int
) -> None:
    """Save the loss curves over the memory."""
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(5.2, 7), layout="constrained")
    for name, (color, width, line) in STYLES.items():
        upper.plot(curves[name], color=color, linewidth=width, linestyle=line, label=name)
        lower.plot(sizes, np.array(needs[name]) / MIB, "o-", color=color, label=name)
    upper.set(xlabel="step", ylabel="mean loss of a token")
    upper.set_title("The same numbers", fontsize=11)
    lower.axhline(budget / MIB, color="#7b838d", linewidth=1, linestyle=":", label="budget")
    lower.set(xlabel="tokens in the batch", ylabel="temporary memory, MiB", xscale="log")
    lower.set_ylim(bottom=0)
    lower.set_xticks(sizes, [str(size) for size in sizes])
    lower.minorticks_off()
    lower.set_title("Memory of a training step", fontsize=11)
    for axes in (upper, lower):
        axes.legend(frameon=False)
        axes.grid(color="#e6e8eb", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)


# %% [markdown]
# ## Putting it together


# %%
class Options(NamedTuple):
    """Sizes; the defaults take about a minute on two cores."""

    num_files: int = 1000
    vocabulary_size: int = 32_768
    features: int = 128
    batch_size: int = 1024
    steps: int = 60
    largest_batch: int = 16_384
    budget: int = 768 * MIB


DEFAULT = Options()


def main(
    options: Options = DEFAULT, figure: Path = Path("examples/output/big_vocabulary.png")
) -> float:
    """Train in both ways, compare, draw; returns the largest difference of the two losses."""
    tokens = read_tokens(options.num_files)
    text = encode(tokens, options.vocabulary_size)
    known = np.mean(text > 0)
    print(f"{len(text):,} tokens; {options.vocabulary_size:,} words are {known:.1%} of them")
    model = make_model(options.vocabulary_size, options.features)
    state = State(model, OPTIMIZER.init(model))
    curves = {name: train(name, state, text, options.batch_size, options.steps) for name in LOSSES}
    difference = float(np.max(np.abs(np.subtract(*curves.values()))))
    for name, losses in curves.items():
        print(f"{name:>9}: loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    print(f"largest difference of the two at any step: {difference:.1e}")
    doublings = range((options.largest_batch // options.batch_size).bit_length())
    sizes = [options.batch_size << i for i in doublings]
    needs = measure_memory(state, sizes)
    too_many = show_memory(sizes, needs, options.budget)
    losses = train("blockwise", state, text, too_many, 3)
    print(f"blockwise, {too_many} tokens: loss {losses[0]:.4f} -> {losses[-1]:.4f} in 3 steps")
    draw(figure, curves, sizes, needs, options.budget)
    print(f"\nfigure: {figure}")
    return difference


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train with and without an array of logits.")
    parser.add_argument("--steps", type=int, default=DEFAULT.steps)
    parser.add_argument("--figure", type=Path, default=Path("examples/output/big_vocabulary.png"))
    arguments = parser.parse_args()
    main(DEFAULT._replace(steps=arguments.steps), arguments.figure)
