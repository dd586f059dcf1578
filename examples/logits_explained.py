# %% [markdown]
# # Logits explained
#
# What a logit is, how softmax turns several into probabilities, and what a temperature, a soft cap
# and a loss do to them. Cells with `@param` have sliders in Colab: drag one and the picture
# changes. Elsewhere, change the number and run the cell again.

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

jnp.set_printoptions(precision=3, suppress=True)
LINE, DOT, REST = "#30507a", "#c8442d", "#b8bec6"

# %% [markdown]
# ## One probability
#
# Odds compare a probability with that of the complement: 0.8 is 4 to 1. The logit is the logarithm
# of the odds. It is 0 at one half, has the opposite sign for the complement, and is unbounded:
# while the probability approaches 1, the logit keeps growing.

# %%
probability = 0.8  # @param {"type":"slider","min":0.01,"max":0.99,"step":0.01}

logit = jl.logit(probability)
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
x = jnp.linspace(-6, 6, 300)
axes.plot(x, jl.sigmoid(x), color=LINE)
axes.plot([-6, logit, logit], [probability, probability, 0], color=REST, linestyle="--")
axes.scatter(logit, probability, color=DOT, zorder=3)
axes.set(xlabel="logit", ylabel="probability", xlim=(-6, 6), ylim=(0, 1))
axes.set_title(
    f"{probability:g} is {probability / (1 - probability):.2f} to 1, a logit of {logit:.2f}"
)
plt.show()

# %% [markdown]
# ## Evidence adds up
#
# By Bayes' rule, the posterior logit is the prior logit plus the log of the likelihood ratio of the
# observation. Probabilities have no such simple rule.

# %%
ill_before = 0.01  # @param {"type":"slider","min":0.01,"max":0.5,"step":0.01}
times_likelier = 20  # @param {"type":"slider","min":1,"max":100,"step":1}

evidence = jnp.log(float(times_likelier))
for tests in range(4):
    after = jl.logit(ill_before) + tests * evidence
    print(f"after {tests} positive tests: logit {after:6.2f}, probability {jl.sigmoid(after):.3f}")

# %% [markdown]
# ## Several classes
#
# A classifier has a logit for each class, and softmax turns them into probabilities: exponentials,
# divided by their sum. Only differences matter. A temperature above 1 brings the logits closer
# together, and so the probabilities; a soft cap c tanh(z / c) affects only large logits.

# %%
a = 2.0  # @param {"type":"slider","min":-6,"max":6,"step":0.1}
b = 1.0  # @param {"type":"slider","min":-6,"max":6,"step":0.1}
c = 0.0  # @param {"type":"slider","min":-6,"max":6,"step":0.1}
temperature = 1.0  # @param {"type":"slider","min":0.1,"max":5,"step":0.1}
cap = 100.0  # @param {"type":"slider","min":1,"max":100,"step":0.5}

logits = jl.soft_cap(jnp.array([a, b, c]), cap) / temperature
scales = {
    "logits": logits,
    "probabilities": jl.softmax(logits),
    "loss, should it be this one": -jl.log_softmax(logits),
}
figure, row = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
for axes, (title, values) in zip(row, scales.items(), strict=True):
    bars = axes.bar(["a", "b", "c"], values, color=LINE)
    axes.bar_label(bars, fmt="%.2f", padding=2)
    axes.margins(y=0.2)
    axes.set_title(title)
plt.show()

# %% [markdown]
# ## Two meanings of one word
#
# The log-odds of a class against all the others together are a logit in the first sense. They
# aren't the layer's logits, but their sigmoid is the softmax of the layer's logits.

# %%
print("logits of the layer    ", logits)
print("the same, shifted      ", logits + 7)
print("log-odds of each class ", jl.class_log_odds(logits))
print("the same, shifted      ", jl.class_log_odds(logits + 7))
print("sigmoid(log-odds)      ", jl.sigmoid(jl.class_log_odds(logits)))
print("softmax(logits)        ", jl.softmax(logits))

# %% [markdown]
# ## What training does
#
# The gradient of the cross entropy is softmax(z) - y, where y is 1 for the true class and 0
# otherwise. A step against it raises the logit of the true class and lowers the others.

# %%
truth = 2  # @param {"type":"slider","min":0,"max":2,"step":1}


@jax.jit
def step(z, _):
    """One step of gradient descent."""
    return z - 0.5 * jax.grad(jl.softmax_cross_entropy_with_integer_labels)(z, truth), jl.softmax(z)


_, probs = jax.lax.scan(step, logits, length=40)
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for k, (name, style) in enumerate(zip("abc", ("-", "--", ":"), strict=True)):
    axes.plot(probs[:, k], style, color=DOT if k == truth else LINE, label=name)
axes.set(xlabel="step", ylabel="probability", ylim=(0, 1))
axes.legend(frameon=False, title="class")
plt.show()

# %% [markdown]
# ## Why not probabilities?
#
# Because float32 can't resolve probabilities close to 1. Computed from the logits 10, 20 and 80,
# the losses differ as they should. Computed from the probability, the second is already 0, and
# nothing is left to learn.

# %%
for z in (10.0, 20.0, 80.0):
    p = jl.sigmoid(z)
    print(
        f"logit {z:5.0f}: -log p is {-jnp.log(p):z9.4g}, -log_sigmoid is {-jl.log_sigmoid(z):9.4g}"
    )
