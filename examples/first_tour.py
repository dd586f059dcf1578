# %% [markdown]
# # jaxlogits: a first tour
#
# A classifier's outputs are *logits*, one number per class. This tour trains a small classifier and
# shows what can be done with its logits: probabilities, a loss, calibration, sampling, and finally
# a loss for so many classes that the array of logits would be too large.

# %%
# Installs what is missing: jaxlogits from the clone that contains this notebook, otherwise from the
# package index (once there is a release; until then, open the notebook in a clone).
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

needed = ["jaxlogits", "matplotlib"]
if missing := [name for name in needed if find_spec(name) is None]:
    places = [Path.cwd(), *Path.cwd().parents]
    clones = [path for path in places if (path / "jaxlogits" / "py.typed").exists()]
    sources = [str(clones[0]) if clones and name == "jaxlogits" else name for name in missing]
    command = [sys.executable, "-m", "pip", "install", "-q", *sources]
    if subprocess.run(command, check=False).returncode:
        raise RuntimeError("pip failed. Before the first release, open this notebook in a clone.")

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import jaxlogits as jl

jnp.set_printoptions(precision=4, suppress=True)

# %% [markdown]
# ## Logits and probabilities
#
# Softmax turns logits into probabilities. Each probability also has a logit in the statistical
# sense, its log-odds log(p / (1 - p)), and `sigmoid` turns that back into the probability.

# %%
logits = jnp.array([2.0, 1.0, 0.0])
print("probabilities", jl.softmax(logits))
print("log-odds     ", jl.class_log_odds(logits))
print("and back     ", jl.sigmoid(jl.class_log_odds(logits)))

# %% [markdown]
# ## Something to classify
#
# Points of three classes, in the three arms of a spiral that run into each other. A few are for
# training; the others show what the classifier has really learned.


# %%
def draw_points(key, number):
    """Points [number, 2] and the arms [number] that they belong to."""
    keys = jax.random.split(key, 3)
    arms = jax.random.randint(keys[0], [number], 0, 3)
    radius = jax.random.uniform(keys[1], [number], minval=0.1, maxval=1.0)
    angle = 2 * jnp.pi * (arms / 3 + 0.6 * radius) + 0.8 * jax.random.normal(keys[2], [number])
    return jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)], axis=-1), arms


keys = jax.random.split(jax.random.key(0), 4)
train_points, train_arms = draw_points(keys[0], 150)
points, arms = draw_points(keys[1], 2000)
waves = 4.0 * jax.random.normal(keys[2], [2, 200])


def hidden_of(points):
    """200 waves on the plane, in place of a network's last hidden layer."""
    return jnp.sin(points @ waves + jnp.arange(200.0))


# %% [markdown]
# ## The loss
#
# The loss takes logits and true classes, and returns one value per example. Write `.mean()`, or
# whatever your training needs.


# %%
def mean_loss(kernel):
    """The mean over the training points."""
    logits = hidden_of(train_points) @ kernel
    return jl.softmax_cross_entropy_with_integer_labels(logits, train_arms).mean()


@jax.jit
def step(kernel, _):
    """Gradient descent."""
    loss, gradient = jax.value_and_grad(mean_loss)(kernel)
    return kernel - 0.5 * gradient, loss


kernel, losses = jax.lax.scan(step, jnp.zeros([200, 3]), length=500)
logits = hidden_of(points) @ kernel
accuracy = (logits.argmax(axis=-1) == arms).mean()
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, right about {accuracy:.1%} of new points")

# %%
side = jnp.linspace(-1.1, 1.1, 150)
grid = jnp.stack(jnp.meshgrid(side, side), axis=-1)
colors = jnp.array([[0.0, 0.45, 0.70], [0.90, 0.62, 0.0], [0.0, 0.62, 0.45]])
figure, axes = plt.subplots(figsize=(4.5, 4.5), layout="constrained")
blend = jl.softmax(hidden_of(grid) @ kernel) @ colors
axes.imshow(0.4 + 0.6 * blend, origin="lower", extent=(-1.1, 1.1, -1.1, 1.1))
axes.scatter(*train_points.T, c=colors[train_arms], edgecolor="white", s=25)
axes.set_title("Probabilities as colours, and the training points")
axes.set_axis_off()
plt.show()

# %% [markdown]
# ## Confident, right or wrong
#
# When a model is very confident, float32 rounds the probability of its answer to 1 and the others
# to 0. A loss computed from probabilities loses what there is to learn; one that takes logits
# doesn't.


# %%
def naive_loss(logits, label):
    """-log of the label's probability."""
    return -jnp.log(jax.nn.softmax(logits)[label])


sure = jnp.array([75.0, 0.0, -30.0])
for truth, verdict in ((0, "right"), (2, "wrong")):
    for loss in (naive_loss, jl.softmax_cross_entropy_with_integer_labels):
        value, gradient = jax.value_and_grad(loss)(sure, truth)
        print(
            f"{verdict}: loss {value:9.3g}, its gradient {gradient[truth]:9.3g} by {loss.__name__}"
        )

# %% [markdown]
# ## Calibration
#
# Of the answers given with 80 % confidence, are 80 % right? The expected calibration error says how
# far off that is on average. A single number, a temperature, fitted to half of the new points,
# fixes most of it.

# %%
half = len(arms) // 2
fit = jl.fit_temperature(logits[:half], arms[:half])
rest, truth = logits[half:], arms[half:]
calibrated = rest / fit.temperature
figure, axes = plt.subplots(figsize=(4.5, 4.5), layout="constrained")
axes.plot([0.3, 1], [0.3, 1], color="#b8bec6", linewidth=1)
for name, values, line in (("as trained", rest, "o--"), ("calibrated", calibrated, "s-")):
    error = jl.expected_calibration_error(values, truth)
    curve = jl.reliability_curve(values, truth, num_bins=8)
    axes.plot(curve.confidence, curve.accuracy, line, label=f"{name}: error {error:.3f}")
axes.set(xlabel="confidence", ylabel="accuracy")
axes.set_title(f"A temperature of {fit.temperature:.2f}")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## From logits to a decision
#
# Functions such as top-p take logits and return logits, with -inf for removed classes, so they
# chain, and samplers and losses can follow. Here are 1000 samples: from all classes, and from the
# smallest set of likeliest classes with a total probability of 0.8 (top-p, or nucleus sampling).

# %%
words = ["cat", "dog", "fox", "owl", "elk"]
logits = jnp.array([2.0, 1.5, 1.0, -1.0, -2.0])
for name, kept in (("all", logits), ("top-p", jl.keep_top_p(logits, 0.8))):
    drawn = jl.sample(keys[3], kept, shape=(1000,))
    counts = jnp.bincount(drawn, length=5)
    print(f"{name:>5}:", ", ".join(f"{n} {word}" for n, word in zip(counts, words, strict=True)))

# %% [markdown]
# ## A loss without the logits in memory
#
# A language model has a logit for each token of a batch and each word of its vocabulary. Any
# per-row loss can be computed one block of rows at a time, including its gradients: wrap it. To see
# the difference, ask the compiled programs how much memory they need; nothing has to run for that.


# %%
def token_loss(kernel, hidden, labels):
    """One loss per token: an ordinary function, which could be any other."""
    return jl.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels)


def plain(kernel, hidden, labels):
    """The mean over all tokens at once."""
    return token_loss(kernel, hidden, labels).mean()


shapes = [
    jax.ShapeDtypeStruct([128, 32_000], jnp.float32),
    jax.ShapeDtypeStruct([8192, 128], jnp.float32),
    jax.ShapeDtypeStruct([8192], jnp.int32),
]
for name, loss in (("plain", plain), ("blockwise", jl.blockwise_mean(token_loss))):
    compiled = jax.jit(jax.value_and_grad(loss)).lower(*shapes).compile()
    print(f"{name:>9}: {compiled.memory_analysis().temp_size_in_bytes / 2**20:6.0f} MiB")

# %% [markdown]
# ## Where to go next
#
# - *A big vocabulary on a TPU*, a notebook: the last section at full size, on all available chips.
# - *Logits explained*, a notebook with sliders.
# - `help(jl.softmax)`, as for every function, documents edge cases and accuracy.
