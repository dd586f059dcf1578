# %% [markdown]
# # A language model in Haiku
#
# A small transformer learns to predict the next token of Python source. Its logits, one for each
# token of a batch and each word of the vocabulary, would be the largest array of a training step.
# So the loss takes hidden states and kernel instead, and computes the logits a block at a time.
#
# Run it with `pip install -e '.[frameworks]' && python examples/haiku_lm.py`. The same model in
# other frameworks: `flax_nnx_lm.py`, `flax_linen_lm.py`, `equinox_lm.py`.

# %%
from functools import partial

import haiku as hk
import jax
import jax.numpy as jnp
import jmp
import optax
from _language import Sizes, Text, draw_batches, read_text, report, sizes_from_command_line
from jax import Array

import jaxlogits as jl

# %% [markdown]
# ## The model
#
# Modules don't set dtypes: a policy says that parameters stay float32, computations are in
# bfloat16, and norms compute their mean in float32. `hk.remat` stores only a block's input and
# recomputes the rest for the gradients.


# %%
def layer_norm(x: Array) -> Array:
    """A new layer norm of the features."""
    return hk.LayerNorm(-1, create_scale=True, create_offset=True, eps=1e-6)(x)


def block(x: Array, heads: int) -> Array:
    """Attention and two layers, each added to its input."""
    length, width = x.shape[-2:]
    init = hk.initializers.VarianceScaling()
    mask = jnp.tril(jnp.ones([1, 1, length, length], bool))
    attend = hk.MultiHeadAttention(heads, width // heads, w_init=init, with_bias=False)
    y = layer_norm(x)
    x = x + attend(y, y, y, mask)
    y = jax.nn.gelu(hk.Linear(4 * width)(layer_norm(x)))
    return x + hk.Linear(width)(y)


class LanguageModel(hk.Module):
    """A transformer that ends in hidden states, and the kernel for their logits."""

    def __call__(self, tokens: Array, sizes: Sizes) -> tuple[Array, Array]:
        """From [batch, length] to [batch, length, features] and [features, vocabulary]."""
        width, init = sizes.features, hk.initializers.RandomNormal(sizes.features**-0.5)
        embed = hk.Embed(sizes.vocabulary, width, w_init=init, name="embed")
        position = hk.Embed(sizes.length, width, w_init=init, name="position")
        x = embed(tokens) + position(jnp.arange(tokens.shape[1]))
        for _ in range(sizes.layers):
            x = hk.remat(partial(block, heads=sizes.heads))(x)
        if sizes.tied:
            return layer_norm(x), embed.embeddings.T
        return layer_norm(x), hk.get_parameter("head", [width, sizes.vocabulary], init=init)


def make_model(sizes: Sizes) -> hk.Transformed:
    """Its functions `init(key, tokens)` and `apply(params, tokens)`."""
    dtype = "bfloat16" if sizes.mixed else "float32"
    for module, compute in ((LanguageModel, dtype), (hk.LayerNorm, "float32")):
        policy = jmp.get_policy(f"params=float32,compute={compute},output={dtype}")
        hk.mixed_precision.set_policy(module, policy)
    return hk.without_apply_rng(hk.transform(lambda tokens: LanguageModel()(tokens, sizes)))


# %% [markdown]
# ## The loss
#
# This replaces `cross_entropy(hidden @ kernel, targets)`. Hidden states and kernel are bfloat16,
# like the layers; products are accumulated in float32, and the loss is float32.


# %%
def mean_loss(params: hk.Params, model: hk.Transformed, tokens: Array) -> Array:
    """Mean cross entropy of each token, given those before it."""
    hidden, kernel = model.apply(params, tokens[:, :-1])
    return jl.linear_softmax_cross_entropy(hidden, kernel, tokens[:, 1:])


# %% [markdown]
# ## Training and test
#
# `optax.MultiSteps` averages the gradients of a few batches before it takes a step (gradient
# accumulation). The test reports perplexity, the exponential of the mean loss, and calibration
# error.


# %%
def train(
    model: hk.Transformed, params: hk.Params, text: Text, sizes: Sizes
) -> tuple[hk.Params, list[float]]:
    """The trained params, and the losses."""
    optimizer = optax.MultiSteps(optax.adamw(3e-3), sizes.accumulate)

    @jax.jit
    def step(
        params: hk.Params, state: optax.MultiStepsState, tokens: Array
    ) -> tuple[hk.Params, optax.MultiStepsState, Array]:
        loss, gradients = jax.value_and_grad(mean_loss)(params, model, tokens)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for tokens in draw_batches(text, sizes):
        params, state, loss = step(params, state, tokens)
        losses.append(float(loss))
    return params, losses


@partial(jax.jit, static_argnames="model")
def evaluate(params: hk.Params, model: hk.Transformed, tokens: Array) -> tuple[Array, Array]:
    """Perplexity and expected calibration error."""
    hidden, kernel = model.apply(params, tokens[:, :-1])
    error = jl.expected_calibration_error(hidden @ kernel, tokens[:, 1:])
    return jnp.exp(mean_loss(params, model, tokens)), error


def main(sizes: Sizes) -> None:
    """Train, test and report."""
    text = read_text(sizes)
    model = make_model(sizes)
    params = jax.jit(model.init)(jax.random.key(0), text.test[:, :-1])
    params, losses = train(model, params, text, sizes)
    report(losses, *map(float, evaluate(params, model, text.test)))


# %%
if __name__ == "__main__":
    main(sizes_from_command_line("Train a language model in Haiku."))
