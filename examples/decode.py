# %% [markdown]
# # Generating text: temperature, top-k, top-p and others, side by side
#
# A language model says how likely each next character is. What the text is like depends on how one
# is then chosen: always the likeliest (greedy), or drawn from all characters, or from those that a
# rule keeps. Here a small model learns to write like Python's manual, and we compare the rules.
#
# Run it with `pip install -e '.[examples]' && python examples/decode.py`.

# %%
import argparse
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from tqdm import tqdm

import jaxlogits as jl

Array = jax.Array
PROMPT = "the value of the object "
CONTEXT = len(PROMPT)  # characters that the model sees


# %% [markdown]
# ## The text
#
# Every Python comes with its language reference, for `help("for")`: half a million characters,
# mostly English prose. Runs of blanks become one blank, and so do rare characters.


# %%
class Text(NamedTuple):
    """Characters as numbers, and the alphabet that turns them back."""

    numbers: np.ndarray  # [N], of classes
    alphabet: list[str]  # [K]

    def spell(self, numbers: Array) -> str:
        """The characters of these numbers."""
        return "".join(self.alphabet[number] for number in np.asarray(numbers))


def load_text() -> Text:
    """Python's language reference."""
    prose = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    characters, counts = np.unique(list(prose), return_counts=True)
    alphabet = [" ", *characters[(counts >= 100) & (characters != " ")].tolist()]
    numbers = {character: number for number, character in enumerate(alphabet)}
    return Text(np.array([numbers.get(character, 0) for character in prose], np.int32), alphabet)


# %% [markdown]
# ## The model
#
# Two layers look at the last 24 characters, as many as the prompt has; the second has one logit for
# each possible next character.


# %%
class Model(NamedTuple):
    """A perceptron over the embedded context."""

    embedding: Array  # [K, D]
    hidden: Array  # [CONTEXT * D, H]
    head: Array  # [H, K]


def new_model(key: Array, num_classes: int, features: int, width: int) -> Model:
    """Random weights."""
    a, b, c = jax.random.split(key, 3)
    inputs = CONTEXT * features
    return Model(
        jax.random.normal(a, [num_classes, features]),
        jax.random.normal(b, [inputs, width]) / inputs**0.5,
        jax.random.normal(c, [width, num_classes]) / width**0.5,
    )


def predict(model: Model, context: Array) -> Array:
    """Logits [..., K] of what follows contexts [..., CONTEXT]."""
    seen = model.embedding[context].reshape(*context.shape[:-1], -1)
    return jax.nn.relu(seen @ model.hidden) @ model.head


def train(text: Text, model: Model, steps: int, batch_size: int) -> tuple[Model, list[float]]:
    """The trained model, and the loss at each step in nats per character."""
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    state = optimizer.init(model)
    numbers = jnp.asarray(text.numbers)

    def mean_loss(model: Model, starts: Array) -> Array:
        places = starts[:, None] + jnp.arange(CONTEXT + 1)[None, :]
        context, labels = jnp.split(numbers[places], [CONTEXT], axis=-1)
        logits = predict(model, context)
        return jl.softmax_cross_entropy_with_integer_labels(logits, labels[:, 0]).mean()

    @jax.jit
    def step(
        model: Model, state: optax.OptState, key: Array
    ) -> tuple[Model, optax.OptState, Array]:
        starts = jax.random.randint(key, [batch_size], 0, len(numbers) - CONTEXT)
        loss, gradient = jax.value_and_grad(mean_loss)(model, starts)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(model, updates), state, loss

    losses = []
    progress = tqdm(jax.random.split(jax.random.key(1), steps), desc="training", unit="step")
    for key in progress:
        model, state, loss = step(model, state, key)
        losses.append(float(loss))
        progress.set_postfix(loss=f"{np.mean(losses[-100:]):.3f}", refresh=False)
    return model, losses


# %% [markdown]
# ## The rules
#
# Each takes logits and returns logits, with -inf for removed classes; the rest is sampled. They
# compose: first a temperature, then a rule.

# %%
Rule = Callable[[Array], Array]

RULES: dict[str, Rule] = {
    "greedy": lambda logits: jl.apply_temperature(logits, 0.0),
    "no rule": lambda logits: logits,
    "temperature 0.5": lambda logits: jl.apply_temperature(logits, 0.5),
    "top-k, 5": lambda logits: jl.keep_top_k(logits, 5),
    "top-p, 0.8": lambda logits: jl.keep_top_p(logits, 0.8),
    "min-p, 0.1": lambda logits: jl.keep_min_p(logits, 0.1),
    "typical, 0.8": lambda logits: jl.keep_typical(logits, 0.8),
}


class Written(NamedTuple):
    """What a rule wrote, with two numbers for each step."""

    numbers: Array  # [T]
    entropy: Array  # [T], of what was drawn from, in nats
    num_kept: Array  # [T], classes that could be drawn


def write(model: Model, rule: Rule, prompt: Array, key: Array, length: int) -> Written:
    """Continue a prompt [CONTEXT], character by character."""

    def step(context: Array, key: Array) -> tuple[Array, Written]:
        logits = rule(predict(model, context))
        number = jl.sample(key, logits)
        kept = jnp.sum(logits > -jnp.inf)
        moved = jnp.concatenate([context[1:], number[None]])
        return moved, Written(number, jl.entropy(logits), kept)

    return jax.lax.scan(step, prompt, jax.random.split(key, length))[1]


def show_rules(text: Text, model: Model, length: int) -> dict[str, Written]:
    """Print what each rule writes, and return it."""
    prompt = jnp.array([text.alphabet.index(character) for character in PROMPT])
    print(f"\nafter {PROMPT!r}:")
    results = {}
    for name, rule in RULES.items():
        written = jax.jit(write, static_argnums=(1, 4))(
            model, rule, prompt, jax.random.key(2), length
        )
        entropy, kept = float(written.entropy.mean()), float(written.num_kept.mean())
        print(f"\n{name}: {kept:.1f} characters to draw from, entropy {entropy:.3f} nats per step")
        print(text.spell(written.numbers))
        results[name] = written
    return results


# %% [markdown]
# ## The figure
#
# What each rule keeps of one distribution, and the entropy while it writes.


# %%
KEPT, REMOVED = "#30507a", "#d4d9e0"


def an_undecided_place(text: Text, model: Model) -> Array:
    """Logits [K] of a place where the entropy is larger than at 19 of 20 others."""
    starts = np.arange(20_000, 30_000, 50)
    contexts = jnp.asarray(text.numbers[starts[:, None] + np.arange(CONTEXT)])
    logits = predict(model, contexts)
    return logits[jnp.argsort(jl.entropy(logits))[19 * len(starts) // 20]]


def draw(path: Path, text: Text, model: Model, results: dict[str, Written]) -> None:
    """Save the figure."""
    logits = an_undecided_place(text, model)
    order = np.argsort(-np.asarray(logits))[:12]
    figure, axes = plt.subplots(len(RULES), 2, figsize=(5.2, 8), layout="constrained", sharex="col")
    for (left, right), (name, rule) in zip(axes, RULES.items(), strict=True):
        shaped = jax.jit(rule)(logits)
        before, after = np.asarray(jl.softmax(logits))[order], np.asarray(jl.softmax(shaped))[order]
        left.bar(range(len(order)), before, color=REMOVED)
        left.bar(range(len(order)), after, color=KEPT, width=0.5)
        left.set_ylabel(name, rotation=0, ha="right", va="center")
        right.plot(results[name].entropy, color=KEPT, linewidth=0.8)
        right.set_ylim(-0.2, 3.2)
        for axis in (left, right):
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_title("Next character:\nall (pale), kept (dark)", fontsize=10)
    axes[0, 1].set_title("Entropy while\nwriting, in nats", fontsize=10)
    axes[-1, 0].set_xticks(range(len(order)), [repr(text.alphabet[k])[1:-1] for k in order])
    axes[-1, 1].set_xlabel("character")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)


# %% [markdown]
# ## Putting it together


# %%
class Options(NamedTuple):
    """Sizes, for less than a minute of training on two cores."""

    features: int = 24
    width: int = 512
    steps: int = 5000
    batch_size: int = 256
    length: int = 300


DEFAULTS = Options()


def main(
    options: Options = DEFAULTS, figure: Path = Path("examples/output/decode.png")
) -> dict[str, Written]:
    """Train, write, draw; returns what each rule wrote."""
    text = load_text()
    model = new_model(jax.random.key(0), len(text.alphabet), options.features, options.width)
    model, losses = train(text, model, options.steps, options.batch_size)
    loss = np.mean(losses[-100:])
    print(
        f"{len(text.numbers)} characters, {len(text.alphabet)} different; "
        f"loss {losses[0]:.2f} -> {loss:.2f} nats per character"
    )
    results = show_rules(text, model, options.length)
    draw(figure, text, model, results)
    print(f"\nfigure: {figure}")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", type=Path, default=Path("examples/output/decode.png"))
    main(figure=parser.parse_args().figure)
