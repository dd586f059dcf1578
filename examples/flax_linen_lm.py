# %% [markdown]
# # A language model in Flax Linen
#
# A small transformer learns to predict the next token of Python source. Its logits, one for each
# token of a batch and each word of the vocabulary, would be the largest array of a training step.
# So the loss takes hidden states and kernel instead, and computes the logits a block at a time.
#
# Run it with `pip install -e '.[frameworks]' && python examples/flax_linen_lm.py`. The same model
# in other frameworks: `flax_nnx_lm.py`, `haiku_lm.py`, `equinox_lm.py`.

# %%
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from _language import Sizes, Text, draw_batches, read_text, report, sizes_from_command_line
from flax.training.train_state import TrainState
from jax import Array

import jaxlogits as jl

Params = dict[str, Any]


# %% [markdown]
# ## The model
#
# For mixed precision each layer has two dtypes: parameters stay float32 (`param_dtype`, by
# default), and computations are in bfloat16 (`dtype`). `nn.remat` stores only a block's input and
# recomputes the rest for the gradients.


# %%
class Block(nn.Module):
    """Attention and two layers, each added to its input."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width, dtype = x.shape[-1], self.dtype
        attend = nn.MultiHeadDotProductAttention(self.heads, dtype=dtype, use_bias=False)
        x = x + attend(nn.LayerNorm(dtype=dtype)(x), mask=nn.make_causal_mask(x[..., 0]))
        y = nn.LayerNorm(dtype=dtype)(x)
        y = nn.gelu(nn.Dense(4 * width, dtype=dtype)(y))
        return x + nn.Dense(width, dtype=dtype)(y)


class LanguageModel(nn.Module):
    """A transformer; the embedding is its head as well if they are tied."""

    sizes: Sizes

    def setup(self) -> None:
        sizes, dtype = self.sizes, jnp.bfloat16 if self.sizes.mixed else jnp.float32
        self.embed = nn.Embed(sizes.vocabulary, sizes.features, dtype=dtype)
        self.position = nn.Embed(sizes.length, sizes.features, dtype=dtype)
        self.blocks = [nn.remat(Block)(sizes.heads, dtype) for _ in range(sizes.layers)]
        self.norm = nn.LayerNorm(dtype=dtype)
        self.head = nn.Dense(sizes.vocabulary, use_bias=False, dtype=dtype)

    def hidden(self, tokens: Array) -> Array:
        """All but the head: [batch, length] to [batch, length, features]."""
        x = self.embed(tokens) + self.position(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def __call__(self, tokens: Array) -> Array:
        """Logits, [batch, length, vocabulary]."""
        hidden = self.hidden(tokens)
        return self.embed.attend(hidden) if self.sizes.tied else self.head(hidden)


def kernel_of(params: Params) -> Array:
    """Of the head, [features, vocabulary]; tied params have no head of their own."""
    return params["head"]["kernel"] if "head" in params else params["embed"]["embedding"].T


# %% [markdown]
# ## The loss
#
# This replaces `cross_entropy(model.apply(variables, tokens), targets)`. Hidden states and kernel
# are bfloat16, like the layers; products are accumulated in float32, and the loss is float32.


# %%
def mean_loss(params: Params, model: LanguageModel, tokens: Array) -> Array:
    """Mean cross entropy of each token, given those before it."""
    hidden = model.apply({"params": params}, tokens[:, :-1], method="hidden")
    kernel = kernel_of(params).astype(hidden.dtype)
    return jl.linear_softmax_cross_entropy(hidden, kernel, tokens[:, 1:])


# %% [markdown]
# ## Training and test
#
# `optax.MultiSteps` averages the gradients of a few batches before it takes a step (gradient
# accumulation). The test reports perplexity, the exponential of the mean loss, and calibration
# error.


# %%
@partial(jax.jit, static_argnames="model")
def train_step(state: TrainState, model: LanguageModel, tokens: Array) -> tuple[TrainState, Array]:
    """Learn from a batch; the loss before it."""
    loss, gradients = jax.value_and_grad(mean_loss)(state.params, model, tokens)
    return state.apply_gradients(grads=gradients), loss


def train(
    model: LanguageModel, params: Params, text: Text, sizes: Sizes
) -> tuple[Params, list[float]]:
    """The trained params, and the losses."""
    optimizer = optax.MultiSteps(optax.adamw(3e-3), sizes.accumulate)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)
    losses = []
    for tokens in draw_batches(text, sizes):
        state, loss = train_step(state, model, tokens)
        losses.append(float(loss))
    return state.params, losses


@partial(jax.jit, static_argnames="model")
def evaluate(params: Params, model: LanguageModel, tokens: Array) -> tuple[Array, Array]:
    """Perplexity and expected calibration error."""
    logits = model.apply({"params": params}, tokens[:, :-1])
    error = jl.expected_calibration_error(logits, tokens[:, 1:])
    return jnp.exp(mean_loss(params, model, tokens)), error


def main(sizes: Sizes) -> None:
    """Train, test and report."""
    text = read_text(sizes)
    model = LanguageModel(sizes)
    params = jax.jit(model.init)(jax.random.key(0), text.test[:, :-1])["params"]
    params, losses = train(model, params, text, sizes)
    report(losses, *map(float, evaluate(params, model, text.test)))


# %%
if __name__ == "__main__":
    main(sizes_from_command_line("Train a language model in Flax Linen."))
