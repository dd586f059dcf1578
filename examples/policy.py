# %% [markdown]
# # A policy trained with GRPO
#
# A small model sees some opening brackets and has to close them: `([{<` needs `>}])`. It is never
# shown an answer. It writes several answers to each prompt, a program counts the correct
# characters, and GRPO makes the answers that did better than the others more likely.
#
# Run it with `pip install -e '.[examples]' && python examples/policy.py`.

# %%
import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from tqdm import tqdm

import jaxlogits as jl

Array = jax.Array
OPEN, CLOSED = "([{<", ")]}>"
ALPHABET = OPEN + CLOSED


class Options(NamedTuple):
    """Sizes, for less than half a minute on two cores."""

    depth: int = 4  # brackets to close
    width: int = 128
    prompts: int = 32  # in a step
    answers: int = 8  # to each prompt
    steps: int = 300
    temperature: float = 1.0
    top_p: float = 0.95


DEFAULTS = Options()


# %% [markdown]
# ## The model
#
# It sees the prompt and what it has written so far, each position as one of the characters or none.


# %%
class Model(NamedTuple):
    """One hidden layer, and a linear head."""

    hidden: Array  # [places * (K + 1), H]
    head: Array  # [H, K]


def new_model(key: Array, options: Options) -> Model:
    """Random weights, and a head that finds all characters equally likely."""
    inputs = 2 * options.depth * (len(ALPHABET) + 1)
    hidden = jax.random.normal(key, [inputs, options.width]) / options.depth**0.5
    return Model(hidden, jnp.zeros([options.width, len(ALPHABET)]))


def see(model: Model, text: Array) -> Array:
    """Hidden states [..., H] of texts [..., places], -1 where nothing is written yet."""
    seen = jax.nn.one_hot(text + 1, len(ALPHABET) + 1)
    return jax.nn.relu(seen.reshape(*text.shape[:-1], -1) @ model.hidden)


# %% [markdown]
# ## Writing
#
# Each request has its own key, so that its answer doesn't depend on the rest of the batch. With
# each character it records which ones top-p kept, and the log probability among those.


# %%
class Answers(NamedTuple):
    """What was written, and under which conditions."""

    seen: Array  # [N, depth, places], the text before each character
    tokens: Array  # [N, depth]
    log_probs: Array  # [N, depth], with which they were drawn
    kept: Array  # [N, depth, K], the classes that could be drawn, and -1


def write(model: Model, prompts: Array, keys: Array, options: Options) -> Answers:
    """One answer to each of the prompts [N, depth]."""

    def request(prompt: Array, key: Array) -> Answers:
        start = jnp.concatenate([prompt, jnp.full_like(prompt, -1)])

        def step(text: Array, given: tuple[Array, Array]) -> tuple[Array, Answers]:
            place, key = given
            logits = jl.apply_temperature(see(model, text) @ model.head, options.temperature)
            shaped = jl.keep_top_p(logits, options.top_p)
            token, log_prob = jl.sample_with_log_prob(key, shaped)
            kept = jnp.where(shaped > -jnp.inf, jnp.arange(len(ALPHABET)), -1)
            return text.at[place].set(token), Answers(text, token, log_prob, kept)

        places = options.depth + jnp.arange(options.depth)
        return jax.lax.scan(step, start, (places, jax.random.split(key, options.depth)))[1]

    return jax.vmap(request)(prompts, keys)


def reward(prompts: Array, tokens: Array) -> Array:
    """The share of right characters: the brackets closed from the last one on."""
    return jnp.mean((tokens == prompts[:, ::-1] + len(OPEN)).astype(jnp.float32), axis=-1)


# %% [markdown]
# ## Learning
#
# The loss of a character is PPO's clipped ratio, with log probabilities at the sampling temperature
# and among the classes that were kept. The head's logits exist only for a block of rows at a time.


# %%
def loss(model: Model, answers: Answers, advantages: Array, options: Options) -> Array:
    """The mean over all characters."""
    log_probs = jl.linear_log_probs(
        see(model, answers.seen),
        model.head,
        answers.tokens,
        kept=answers.kept,
        temperature=options.temperature,
    )
    ratio = jnp.exp(log_probs - answers.log_probs)
    gain = jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.8, 1.2) * advantages)
    return -jnp.mean(gain)


class Progress(NamedTuple):
    """Means of one step."""

    reward: Array
    entropy: Array  # of the whole policy, in nats
    kept: Array  # probability of the classes that top-p left


def train(model: Model, options: Options) -> tuple[Model, Progress]:
    """The trained model, and how each step went."""
    optimizer = optax.adam(3e-3)
    state = optimizer.init(model)
    count = options.prompts * options.answers

    @jax.jit
    def step(
        model: Model, state: optax.OptState, key: Array
    ) -> tuple[Model, optax.OptState, Progress]:
        to_ask, to_write = jax.random.split(key)
        asked = jax.random.randint(to_ask, [options.prompts, options.depth], 0, len(OPEN))
        prompts = jnp.repeat(asked, options.answers, axis=0)
        answers = write(model, prompts, jax.random.split(to_write, count), options)
        rewards = reward(prompts, answers.tokens)
        grouped = rewards.reshape(options.prompts, options.answers)
        centred = grouped - grouped.mean(axis=-1, keepdims=True)
        advantages = centred / (grouped.std(axis=-1, ddof=1, keepdims=True) + 1e-4)
        by_character = jnp.broadcast_to(advantages.reshape(-1, 1), answers.tokens.shape)
        _, entropies = jl.linear_log_probs_and_entropy(
            see(model, answers.seen), model.head, answers.tokens, temperature=options.temperature
        )
        probs = jl.softmax(see(model, answers.seen) @ model.head / options.temperature)
        kept = jnp.sum(jnp.where(answers.kept >= 0, probs, 0.0), axis=-1)
        for _ in range(2):  # the second time the ratio isn't 1
            gradient = jax.grad(loss)(model, answers, by_character, options)
            updates, state = optimizer.update(gradient, state)
            model = optax.apply_updates(model, updates)
        return model, state, Progress(rewards.mean(), entropies.mean(), kept.mean())

    steps = []
    bar = tqdm(jax.random.split(jax.random.key(1), options.steps), desc="training", unit="step")
    for key in bar:
        model, state, now = step(model, state, key)
        steps.append(jax.tree.map(float, now))
        bar.set_postfix(reward=f"{steps[-1].reward:.3f}", refresh=False)
    return model, Progress(*map(np.array, zip(*steps, strict=True)))


def share_right(model: Model, options: Options) -> float:
    """How many of 1000 answers have every character right."""
    to_ask, to_write = jax.random.split(jax.random.key(2))
    prompts = jax.random.randint(to_ask, [1000, options.depth], 0, len(OPEN))
    keys = jax.random.split(to_write, 1000)
    tokens = jax.jit(write, static_argnums=3)(model, prompts, keys, options).tokens
    return float(jnp.mean((reward(prompts, tokens) == 1).astype(jnp.float32)))


# %% [markdown]
# ## The figure


# %%
def draw(path: Path, progress: Progress) -> None:
    """Save the figure."""
    titles = ["Reward", "Entropy, in nats", "Probability that top-p keeps"]
    figure, axes = plt.subplots(3, 1, figsize=(5.2, 5.6), layout="constrained", sharex=True)
    for axis, title, values in zip(axes, titles, progress, strict=True):
        axis.plot(values, color="#30507a", linewidth=0.8)
        axis.set_title(title, loc="left", fontsize=11)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main(
    options: Options = DEFAULTS, figure: Path = Path("examples/output/policy.png")
) -> tuple[float, float]:
    """Train, draw; returns the share of right answers before and after."""
    model = new_model(jax.random.key(0), options)
    before = share_right(model, options)
    model, progress = train(model, options)
    after = share_right(model, options)
    draw(figure, progress)
    print(f"reward: {progress.reward[0]:.3f} -> {progress.reward[-10:].mean():.3f}")
    print(f"all right: {before:.1%} -> {after:.1%} of answers")
    print(f"figure: {figure}")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", type=Path, default=Path("examples/output/policy.png"))
    main(figure=parser.parse_args().figure)
