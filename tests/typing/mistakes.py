"""What a strict type checker finds: the lines with ``# E: code`` have that error, no other has one.

Not run, only checked; tests/test_typing.py does it.
"""

import jax
import jax.numpy as jnp

import jaxlogits as jl

z = jnp.zeros([4, 3])
labels = jnp.array([0, 1, 2, 0])

jl.softmax(z, -1, z > 0)  # E: call-arg
jl.softmax("logits")  # E: arg-type
jl.softmax([0.0, 1.0])  # E: arg-type
jl.softmax(z, axis=None)  # E: arg-type
jl.softmax(z, axis=[0, 1])  # E: arg-type
jl.logsumexp(z, keepdims=True)  # E: call-arg
jl.softmax_cross_entropy(z)  # E: call-arg
jl.softmax_cross_entropy_with_integer_labels(z, labels, reduction="mean")  # E: call-arg
jl.sigmoid_binary_cross_entropy(z, z, weight=2.0)  # E: call-arg
jl.linear_softmax_cross_entropy(z, z.T, labels, block_size=0.5)  # E: arg-type
jl.linear_softmax_cross_entropy(z, z.T, labels, reduction="max")  # E: arg-type
jl.keep_top_k(z)  # E: call-arg
jl.sample(z)  # E: call-arg
jl.blockwise_mean(z)  # E: arg-type
scale = jl.fit_temperature(z, labels).scale  # E: attr-defined
jl.predict_probs(jl.fit_temperature(z, labels), z)  # E: arg-type
jl.softmaks(z)  # E: attr-defined
loss: float = jl.entropy(z)  # E: assignment
pair: tuple[jax.Array, jax.Array] = jl.sample(jax.random.key(0), z)  # E: assignment


@jl.checked
def step(x: jax.Array) -> jax.Array:
    """A checked function keeps its signature."""
    return jl.logit(x)


step("x")  # E: arg-type
step(z, z)  # E: call-arg
