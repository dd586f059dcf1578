# %% [markdown]
# # A language model in Equinox
#
# A small transformer learns to predict the next token of Python source. Its logits, one for each
# token of a batch and each word of the vocabulary, would be the largest array of a training step.
# So the loss takes hidden states and kernel instead, and computes the logits a block at a time.
#
# Run it with `pip install -e '.[frameworks]' && python examples/equinox_lm.py`. The same model in
# other frameworks: `flax_nnx_lm.py`, `flax_linen_lm.py`, `haiku_lm.py`.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from _language import Sizes, Text, draw_batches, read_text, report, sizes_from_command_line
from jax import Array

import jaxlogits as jl

# %% [markdown]
# ## The model
#
# The model takes one piece of text; `jax.vmap` makes it a batch. `eqx.filter_checkpoint` stores
# only a block's input and recomputes the rest for the gradients.


# %%
class Block(eqx.Module):
    """Attention and two layers, each added to its input."""

    norm_attention: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    norm_mlp: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP

    def __init__(self, sizes: Sizes, key: Array):
        width, keys = sizes.features, jax.random.split(key)
        self.norm_attention = eqx.nn.LayerNorm(width, eps=1e-6)
        self.attention = eqx.nn.MultiheadAttention(sizes.heads, width, key=keys[0])
        self.norm_mlp = eqx.nn.LayerNorm(width, eps=1e-6)
        self.mlp = eqx.nn.MLP(width, width, 4 * width, 1, jax.nn.gelu, key=keys[1])

    def __call__(self, x: Array) -> Array:
        mask = jnp.tril(jnp.ones([len(x), len(x)], bool))
        y = jax.vmap(self.norm_attention)(x)
        x = x + self.attention(y, y, y, mask)
        return x + jax.vmap(self.mlp)(jax.vmap(self.norm_mlp)(x))


class LanguageModel(eqx.Module):
    """A transformer that ends in hidden states; the embedding is its head if it has no other."""

    embed: eqx.nn.Embedding
    position: Array
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear | None
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(self, sizes: Sizes, key: Array):
        width, keys = sizes.features, jax.random.split(key, 3 + sizes.layers)
        embedding = jax.random.normal(keys[0], [sizes.vocabulary, width]) / width**0.5
        self.embed = eqx.nn.Embedding(weight=embedding)
        self.position = jax.random.normal(keys[1], [sizes.length, width]) / width**0.5
        self.blocks = [Block(sizes, key) for key in keys[3:]]
        self.norm = eqx.nn.LayerNorm(width, eps=1e-6)
        head = eqx.nn.Linear(width, sizes.vocabulary, use_bias=False, key=keys[2])
        self.head = None if sizes.tied else head
        self.dtype = jnp.dtype(jnp.bfloat16 if sizes.mixed else jnp.float32)

    def __call__(self, tokens: Array) -> Array:
        """From [length] to [length, features]."""
        x = jax.vmap(self.embed)(tokens) + self.position[: len(tokens)]
        for block in self.blocks:
            x = eqx.filter_checkpoint(block)(x)
        return jax.vmap(self.norm)(x)


# %% [markdown]
# ## The loss
#
# This replaces `cross_entropy(hidden @ kernel, targets)`. The model is cast to bfloat16 inside, so
# its gradients are float32. Products are accumulated in float32, and the loss is float32.


# %%
def forward(model: LanguageModel, tokens: Array) -> tuple[Array, Array]:
    """Hidden states and the head's kernel, computed in the model's dtype."""
    floats, rest = eqx.partition(model, eqx.is_inexact_array)
    cast = eqx.combine(jax.tree.map(lambda x: x.astype(model.dtype), floats), rest)
    return jax.vmap(cast)(tokens), (cast.head or cast.embed).weight.T


def mean_loss(model: LanguageModel, tokens: Array) -> Array:
    """Mean cross entropy of each token, given those before it."""
    hidden, kernel = forward(model, tokens[:, :-1])
    return jl.linear_softmax_cross_entropy(hidden, kernel, tokens[:, 1:])


# %% [markdown]
# ## Training and test
#
# `optax.MultiSteps` averages the gradients of a few batches before it takes a step (gradient
# accumulation). The test reports perplexity, the exponential of the mean loss, and calibration
# error.


# %%
def train(model: LanguageModel, text: Text, sizes: Sizes) -> tuple[LanguageModel, list[float]]:
    """The trained model, and the losses."""
    optimizer = optax.MultiSteps(optax.adamw(3e-3), sizes.accumulate)

    @eqx.filter_jit
    def step(
        model: LanguageModel, state: optax.MultiStepsState, tokens: Array
    ) -> tuple[LanguageModel, optax.MultiStepsState, Array]:
        loss, gradients = eqx.filter_value_and_grad(mean_loss)(model, tokens)
        updates, state = optimizer.update(gradients, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, loss

    state, losses = optimizer.init(eqx.filter(model, eqx.is_array)), []
    for tokens in draw_batches(text, sizes):
        model, state, loss = step(model, state, tokens)
        losses.append(float(loss))
    return model, losses


@eqx.filter_jit
def evaluate(model: LanguageModel, tokens: Array) -> tuple[Array, Array]:
    """Perplexity and expected calibration error."""
    hidden, kernel = forward(model, tokens[:, :-1])
    error = jl.expected_calibration_error(hidden @ kernel, tokens[:, 1:])
    return jnp.exp(mean_loss(model, tokens)), error


def main(sizes: Sizes) -> None:
    """Train, test and report."""
    text = read_text(sizes)
    model = LanguageModel(sizes, jax.random.key(0))
    model, losses = train(model, text, sizes)
    report(losses, *map(float, evaluate(model, text.test)))


# %%
if __name__ == "__main__":
    main(sizes_from_command_line("Train a language model in Equinox."))
