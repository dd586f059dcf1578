# %% [markdown]
# # A language model in Flax NNX
#
# A small transformer learns to predict the next token of Python source. Its logits, one for each
# token of a batch and each word of the vocabulary, would be the largest array of a training step.
# So the loss takes hidden states and kernel instead, and computes the logits a block at a time.
#
# Run it with `pip install -e '.[frameworks]' && python examples/flax_nnx_lm.py`. The same model in
# other frameworks: `flax_linen_lm.py`, `haiku_lm.py`, `equinox_lm.py`.

# %%
import jax.numpy as jnp
import optax
from _language import Sizes, Text, draw_batches, read_text, report, sizes_from_command_line
from flax import nnx
from jax import Array

import jaxlogits as jl

# %% [markdown]
# ## The model
#
# For mixed precision each layer has two dtypes: parameters stay float32 (`param_dtype`, by
# default), and computations are in bfloat16 (`dtype`). `nnx.remat` stores only a block's input and
# recomputes the rest for the gradients.


# %%
class Block(nnx.Module):
    """Attention and two layers, each added to its input."""

    def __init__(self, sizes: Sizes, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, common = sizes.features, {"dtype": dtype, "rngs": rngs}
        self.norm_attention = nnx.LayerNorm(width, **common)
        self.attention = nnx.MultiHeadAttention(
            sizes.heads, width, use_bias=False, decode=False, **common
        )
        self.norm_mlp = nnx.LayerNorm(width, **common)
        self.up = nnx.Linear(width, 4 * width, **common)
        self.down = nnx.Linear(4 * width, width, **common)

    @nnx.remat
    def __call__(self, x: Array) -> Array:
        mask = nnx.make_causal_mask(x[..., 0])
        x = x + self.attention(self.norm_attention(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm_mlp(x))))


class LanguageModel(nnx.Module):
    """A transformer; the embedding is its head as well if they are tied."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs):
        dtype = jnp.bfloat16 if sizes.mixed else jnp.float32
        width, common = sizes.features, {"dtype": dtype, "rngs": rngs}
        self.embed = nnx.Embed(sizes.vocabulary, width, **common)
        self.position = nnx.Embed(sizes.length, width, **common)
        self.blocks = nnx.List([Block(sizes, dtype, rngs) for _ in range(sizes.layers)])
        self.norm = nnx.LayerNorm(width, **common)
        if not sizes.tied:
            self.head = nnx.Linear(width, sizes.vocabulary, use_bias=False, **common)
        self.tied = sizes.tied

    def hidden(self, tokens: Array) -> Array:
        """All but the head: [batch, length] to [batch, length, features]."""
        x = self.embed(tokens) + self.position(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def __call__(self, tokens: Array) -> Array:
        """Logits, [batch, length, vocabulary]."""
        hidden = self.hidden(tokens)
        return self.embed.attend(hidden) if self.tied else self.head(hidden)

    @property
    def kernel(self) -> Array:
        """Of the head, [features, vocabulary]."""
        return self.embed.embedding[...].T if self.tied else self.head.kernel[...]


# %% [markdown]
# ## The loss
#
# This replaces `cross_entropy(model(tokens), targets)`. Hidden states and kernel are bfloat16, like
# the layers; products are accumulated in float32, and the loss is float32.


# %%
def mean_loss(model: LanguageModel, tokens: Array) -> Array:
    """Mean cross entropy of each token, given those before it."""
    hidden = model.hidden(tokens[:, :-1])
    kernel = model.kernel.astype(hidden.dtype)
    return jl.linear_softmax_cross_entropy(hidden, kernel, tokens[:, 1:])


# %% [markdown]
# ## Training and test
#
# `optax.MultiSteps` averages the gradients of a few batches before it takes a step (gradient
# accumulation). The test reports perplexity, the exponential of the mean loss, and calibration
# error.


# %%
@nnx.jit
def train_step(model: LanguageModel, optimizer: nnx.Optimizer, tokens: Array) -> Array:
    """Learn from a batch; the loss before it."""
    loss, gradients = nnx.value_and_grad(mean_loss)(model, tokens)
    optimizer.update(model, gradients)
    return loss


def train(model: LanguageModel, text: Text, sizes: Sizes) -> list[float]:
    """Train the model where it is; the losses."""
    steps = optax.MultiSteps(optax.adamw(3e-3), sizes.accumulate)
    optimizer = nnx.Optimizer(model, steps.gradient_transformation(), wrt=nnx.Param)
    batches = draw_batches(text, sizes)
    return [float(train_step(model, optimizer, tokens)) for tokens in batches]


@nnx.jit
def evaluate(model: LanguageModel, tokens: Array) -> tuple[Array, Array]:
    """Perplexity and expected calibration error."""
    error = jl.expected_calibration_error(model(tokens[:, :-1]), tokens[:, 1:])
    return jnp.exp(mean_loss(model, tokens)), error


def main(sizes: Sizes) -> None:
    """Train, test and report."""
    text = read_text(sizes)
    model = LanguageModel(sizes, nnx.Rngs(0))
    losses = train(model, text, sizes)
    report(losses, *map(float, evaluate(model, text.test)))


# %%
if __name__ == "__main__":
    main(sizes_from_command_line("Train a language model in Flax NNX."))
