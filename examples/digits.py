# %% [markdown]
# # Handwritten digits: what a logit is
#
# A classifier's outputs are *logits*: one real number per class; the larger, the likelier. Here ten
# linear units look at an 8 × 8 image of a digit and give ten logits. We train them, and then look
# at what the numbers mean.
#
# Run it with `pip install -e '.[examples]' && python examples/digits.py`.

# %%
import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jaxlogits as jl

Array = jax.Array


# %% [markdown]
# ## The data
#
# scikit-learn comes with 1797 handwritten digits. Four fifths are for training, the rest for
# testing.


# %%
class Digits(NamedTuple):
    """N images as rows of 64 pixels in [0, 1], and the N digits that they show."""

    images: Array
    labels: Array


def load_data() -> tuple[Digits, Digits]:
    """The training and the test set, the same in every run."""
    pixels, digits = load_digits(return_X_y=True)
    split = train_test_split(pixels / 16, digits, test_size=0.2, stratify=digits, random_state=0)
    train_images, test_images, train_labels, test_labels = split
    train = Digits(jnp.asarray(train_images, jnp.float32), jnp.asarray(train_labels, jnp.int32))
    test = Digits(jnp.asarray(test_images, jnp.float32), jnp.asarray(test_labels, jnp.int32))
    return train, test


# %% [markdown]
# ## The model: a logits layer
#
# One linear unit per class. Its output isn't squeezed into [0, 1]: a logit can be any number.


# %%
class Layer(NamedTuple):
    """Ten linear units."""

    kernel: Array  # [64, 10]
    bias: Array  # [10]


def predict(layer: Layer, images: Array) -> Array:
    """Logits [N, 10] of images [N, 64]."""
    return images @ layer.kernel + layer.bias[None, :]


# %% [markdown]
# ## Training
#
# The loss takes the logits as they are and the true class of each image. It returns one number per
# image, -log of the probability that the model gives to the true class; we minimize the mean.


# %%
def mean_loss(layer: Layer, data: Digits) -> Array:
    """Mean cross entropy."""
    logits = predict(layer, data.images)
    return jl.softmax_cross_entropy_with_integer_labels(logits, data.labels).mean()


def train(data: Digits, steps: int) -> tuple[Layer, list[float]]:
    """The trained layer, and the loss before each step."""
    optimizer = optax.sgd(learning_rate=0.3, momentum=0.9)
    # With no hidden layer the loss has a single valley, so zeros are as good a start as any.
    layer = Layer(kernel=jnp.zeros([64, 10]), bias=jnp.zeros([10]))
    state = optimizer.init(layer)

    @jax.jit
    def step(layer: Layer, state: optax.OptState) -> tuple[Layer, optax.OptState, Array]:
        loss, gradient = jax.value_and_grad(mean_loss)(layer, data)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(layer, updates), state, loss

    losses = []
    progress = tqdm(range(steps), desc="training", unit="step")
    for _ in progress:
        layer, state, loss = step(layer, state)
        losses.append(float(loss))
        progress.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
    return layer, losses


# %% [markdown]
# ## From logits to a decision
#
# Softmax turns the logits into probabilities. It keeps their order, so a decision doesn't need
# probabilities at all: the largest logit has the largest probability.


# %%
def show_decisions(logits: Array, labels: Array) -> float:
    """Print the test accuracy, and return it."""
    by_logits = jnp.argmax(logits, axis=-1)
    by_probs = jnp.argmax(jl.softmax(logits), axis=-1)
    accuracy = float((by_logits == labels).mean())
    print(f"test accuracy: {accuracy:.3f} on {len(labels)} images")
    agree = int((by_logits == by_probs).sum())
    print(f"argmax of logits = argmax of probabilities: {agree} of {len(labels)} images")
    return accuracy


# %% [markdown]
# ## One image, three scales
#
# | | range | sums to |
# |---|---|---|
# | logit | any number | anything: adding 7 to all ten makes no difference |
# | probability p | 0 to 1 | 1 |
# | class log-odds, log(p / (1 - p)) | any number | anything: each is this class against the rest |
#
# The log-odds are what statistics calls the logit. `sigmoid` turns them back into p.


# %%
def show_scales(logits: Array, label: int) -> None:
    """Print the three scales of one image side by side."""
    probs = jl.softmax(logits)
    log_odds = jl.class_log_odds(logits)
    back = jl.sigmoid(log_odds)
    print(f"\na hard image, a {label}:")
    print("class     logit  probability  log-odds  sigmoid(log-odds)")
    for k in range(10):
        mark = "  <- true class" if k == label else ""
        row = f"{k:5}  {logits[k]:8.3f}  {probs[k]:11.6f}  {log_odds[k]:8.3f}  {back[k]:17.6f}"
        print(row + mark)


# %% [markdown]
# ## Confident, right or wrong
#
# Take the image with the smallest loss and multiply its logits by 6, so that the model is very
# confident. If the answer is right, the loss is tiny but not 0, and neither is its derivative; if
# it is wrong, the loss is large but finite. In float32 the probabilities round to 1 and 0, so a
# loss that is computed from *them* loses all of this.


# %%
def naive_loss(logits: Array, label: Array) -> Array:
    """-log p, computed from p: right on paper, lost in float32."""
    return -jnp.log(jax.nn.softmax(logits)[label])


def show_confidence(logits: Array) -> None:
    """Print the loss of a confident answer, if it is right and if it is wrong."""
    sure = 6 * logits
    losses = {"jaxlogits": jl.softmax_cross_entropy_with_integer_labels, "-log(p)": naive_loss}
    print(f"\na confident answer, {jnp.argmax(sure)}:")
    print("true class          loss by        loss  d loss / d logit of the true class")
    for truth, name in ((jnp.argmax(sure), "right"), (jnp.argmin(sure), "wrong")):
        for by, loss in losses.items():
            value, gradient = jax.value_and_grad(loss)(sure, truth)
            print(f"{truth}, so it's {name}  {by:>12}  {value:z10.4g}  {gradient[truth]:z10.4g}")


# %% [markdown]
# ## The figure
#
# Eight test images with the model's probabilities, and the loss during training.


# %%
RIGHT, WRONG, REST = "#2a7f62", "#c8442d", "#b8bec6"


def hardest_first(logits: Array, labels: Array) -> Array:
    """Indices of the images, the largest loss first."""
    return jnp.argsort(-jl.softmax_cross_entropy_with_integer_labels(logits, labels))


def draw_image(axes: tuple[plt.Axes, plt.Axes], image: Array, probs: Array, label: int) -> None:
    """An image, and bars of its probabilities below it."""
    picture, bars = axes
    decision = int(probs.argmax())
    colors = [REST] * 10
    colors[decision] = WRONG
    colors[label] = RIGHT
    picture.imshow(image.reshape(8, 8), cmap="gray_r")
    verdict = f"{decision}" if decision == label else f"{decision} (is {label})"
    picture.set_title(verdict, color=RIGHT if decision == label else WRONG, fontsize=10)
    picture.set_axis_off()
    bars.bar(range(10), probs, color=colors)
    bars.set_ylim(0, 1)
    bars.set_xticks([0, 3, 6, 9])
    bars.set_yticks([0, 1])
    bars.tick_params(labelsize=9, length=2)
    bars.spines[["top", "right"]].set_visible(False)


def draw(path: Path, data: Digits, logits: Array, losses: list[float]) -> None:
    """Save the figure."""
    order = hardest_first(logits, data.labels)
    chosen = [*order[:4], *order[len(order) // 2 :: len(order) // 8][:4]]
    probs = jl.softmax(logits)
    figure = plt.figure(figsize=(5.2, 8), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.9, 1])
    title = (
        "The four hardest test images and four ordinary ones\n(green: the truth; red: a mistake)"
    )
    upper.suptitle(title, fontsize=11)
    axes = upper.subplots(4, 4, height_ratios=[1.5, 1, 1.5, 1])
    for place, index in enumerate(chosen):
        row, column = divmod(place, 4)
        pair = (axes[2 * row, column], axes[2 * row + 1, column])
        draw_image(pair, data.images[index], probs[index], int(data.labels[index]))
    for row in (1, 3):
        axes[row, 0].set_ylabel("probability", fontsize=9)
    curve = lower.subplots()
    curve.plot(losses, color="#30507a")
    curve.set(xlabel="step", ylabel="mean training loss", yscale="log")
    curve.set_title("Cross entropy during training", fontsize=11)
    curve.grid(which="both", color="#e6e8eb", linewidth=0.6)
    curve.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)


# %% [markdown]
# ## Putting it together


# %%
def main(steps: int = 400, figure: Path = Path("examples/output/digits.png")) -> float:
    """Train, show, draw; returns the test accuracy."""
    train_data, test_data = load_data()
    layer, losses = train(train_data, steps)
    logits = predict(layer, test_data.images)
    accuracy = show_decisions(logits, test_data.labels)
    order = hardest_first(logits, test_data.labels)
    show_scales(logits[order[0]], int(test_data.labels[order[0]]))
    show_confidence(logits[order[-1]])
    draw(figure, test_data, logits, losses)
    print(f"\nfigure: {figure}")
    return accuracy


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a logits layer on handwritten digits.")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--figure", type=Path, default=Path("examples/output/digits.png"))
    options = parser.parse_args()
    main(options.steps, options.figure)
