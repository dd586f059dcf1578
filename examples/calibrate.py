# %% [markdown]
# # Calibration: probabilities that match frequencies
#
# A classifier that has memorized its few training images is overconfident. We measure by how much,
# fix it with a single number (temperature scaling), and let it answer with *sets* of digits that
# contain the truth as often as we ask for (conformal prediction).
#
# Run it with `pip install -e '.[examples]' && python examples/calibrate.py`.

# %%
import argparse
import functools
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
# scikit-learn's 1797 handwritten digits in three parts: a few for training, so that they are easy
# to memorize; some for calibration, which the model hasn't seen; and the rest for testing.


# %%
class Digits(NamedTuple):
    """N images as rows of 64 pixels in [0, 1], and the N digits that they show."""

    images: Array
    labels: Array


def load_data() -> tuple[Digits, Digits, Digits]:
    """What to train on, to calibrate with and to test on, the same in every run."""
    pixels, digits = load_digits(return_X_y=True)
    parts = []
    for size in (100, 600):
        taken, pixels, of_taken, digits = train_test_split(
            pixels, digits, train_size=size, stratify=digits, random_state=0
        )
        parts.append((taken, of_taken))
    return tuple(
        Digits(jnp.asarray(x / 16, jnp.float32), jnp.asarray(y, jnp.int32))
        for x, y in (*parts, (pixels, digits))
    )


# %% [markdown]
# ## An overconfident model
#
# One hidden layer of 64 units, trained until it makes no mistakes, and then for much longer. By
# then the loss falls only because the logits grow.


# %%
class Network(NamedTuple):
    """Two layers, 64 to 64 to 10."""

    hidden: Array  # [64, 64]
    kernel: Array  # [64, 10]


def predict(network: Network, images: Array) -> Array:
    """Logits [N, 10] of images [N, 64]."""
    return jax.nn.relu(images @ network.hidden) @ network.kernel


def train(data: Digits, steps: int) -> Network:
    """The network after so many steps on all of the data."""
    optimizer = optax.sgd(learning_rate=0.3, momentum=0.9)
    keys = jax.random.split(jax.random.key(0))
    network = Network(
        *(jax.random.normal(key, [64, n]) / 8 for key, n in zip(keys, (64, 10), strict=True))
    )
    state = optimizer.init(network)

    def mean_loss(network: Network) -> Array:
        logits = predict(network, data.images)
        return jl.softmax_cross_entropy_with_integer_labels(logits, data.labels).mean()

    @jax.jit
    def step(network: Network, state: optax.OptState) -> tuple[Network, optax.OptState, Array]:
        loss, gradient = jax.value_and_grad(mean_loss)(network)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(network, updates), state, loss

    progress = tqdm(range(steps), desc="training", unit="step")
    for _ in progress:
        network, state, loss = step(network, state)
        progress.set_postfix(loss=f"{loss:.5f}", refresh=False)
    return network


# %% [markdown]
# ## Temperature scaling
#
# Dividing the logits by a temperature T keeps their order, and so every decision; it only makes the
# probabilities less extreme. `fit_temperature` finds the T that maximizes the likelihood of the
# calibration images. The errors before and after are measured on the test images.


# %%
METRICS = {
    "expected calibration error": jl.expected_calibration_error,
    "in bins of equal weight": jl.adaptive_calibration_error,
    "cross entropy": lambda *rows: jl.softmax_cross_entropy_with_integer_labels(*rows).mean(),
    "Brier score": jl.brier_score,
}


def show_calibration(logits: Array, labels: Array, temperature: Array) -> None:
    """Print the errors before and after."""
    right = jnp.argmax(logits, axis=-1) == labels
    print(f"test accuracy: {right.mean():.3f} on {len(labels)} images")
    print(f"\n{'on the test images':28}{'as trained':>12}{'calibrated':>12}")
    print(f"{'temperature':28}{1:12.3f}{temperature:12.3f}")
    both = jnp.stack([logits, logits / temperature])
    for name, metric in METRICS.items():
        before, after = jax.jit(jax.vmap(metric, in_axes=(0, None)))(both, labels)
        print(f"{name:28}{before:12.4f}{after:12.4f}")


# %% [markdown]
# ## Conformal sets
#
# Answer with a set of digits: all those that can't be ruled out. A score says how unlikely a digit
# is for an image, and a threshold is computed from the scores of the true digits of the calibration
# images. However bad the model is, the sets for new images contain the truth as often as promised;
# a bad model just has larger sets.


# %%
SCORES = {
    "-log p": lambda logits: -jl.log_softmax(logits),
    "adaptive": lambda logits: jl.aps_scores(logits, key=jax.random.key(1)),
}
PROMISES = jnp.array([0.9, 0.95, 0.99])


class Answers(NamedTuple):
    """What the model says about N images, and what they show."""

    logits: Array  # [N, 10]
    labels: Array  # [N]


@functools.partial(jax.jit, static_argnums=0)
def measure_sets(
    kind: str, promises: Array, held_out: Answers, test: Answers
) -> tuple[Array, Array]:
    """How often the test images' sets hold the truth, and their size, for each promise."""
    score = SCORES[kind]

    def of_promise(promise: Array) -> tuple[Array, Array]:
        threshold = jl.conformal_threshold(score(held_out.logits), held_out.labels, promise)
        sets = jl.conformal_set(score(test.logits), threshold)
        holds = jnp.take_along_axis(sets, test.labels[:, None], axis=-1)
        return holds.mean(), sets.sum(axis=-1).mean()

    return jax.vmap(of_promise)(promises)


def show_sets(held_out: Answers, test: Answers) -> None:
    """Print coverage and size of the sets."""
    print(f"\n{'sets by the score':20}{'promised':>10}{'covered':>10}{'digits in a set':>18}")
    for kind in SCORES:
        measured = measure_sets(kind, PROMISES, held_out, test)
        for promise, covered, size in zip(PROMISES, *measured, strict=True):
            print(f"{kind:20}{promise:10.2f}{covered:10.3f}{size:18.2f}")


# %% [markdown]
# ## Binary questions
#
# Whether the digit is a nine is a binary question. Its log-odds are those of the class against all
# others. If the model says 20 %, how often is it a nine?
#
# Even a calibrated model has a calibration error, because a bin has few rows. Labels drawn from the
# model's own probabilities show how large that would be. A logistic regression of the labels on the
# log-odds says what is wrong: the slope is below 1 if the model is overconfident, and the intercept
# isn't 0 if it says nine too often or too rarely.


# %%
NINE = 9


def ask_for_nines(answers: Answers) -> tuple[Array, Array]:
    """Log-odds of a nine, and whether it is one."""
    return jl.class_log_odds(answers.logits)[:, NINE], answers.labels == NINE


@jax.jit
def error_by_chance(log_odds: Array) -> Array:
    """The mean calibration error, if the probabilities were right."""

    def error(key: Array) -> Array:
        drawn = jax.random.bernoulli(key, jl.sigmoid(log_odds))
        return jl.binary_calibration_error(log_odds, drawn)

    return jax.vmap(error)(jax.random.split(jax.random.key(2), 1000)).mean()


def show_nines(test: Answers, temperature: Array) -> None:
    """Print what is said of the binary question, before and after."""
    print(f"\n{'is it a nine?':28}{'as trained':>15}{'calibrated':>15}")
    both = [ask_for_nines(test._replace(logits=test.logits / t)) for t in (1.0, temperature)]
    lines = {
        "calibration error": [jl.binary_calibration_error(*rows) for rows in both],
        "the same by chance": [error_by_chance(log_odds) for log_odds, _ in both],
        "Brier score": [jl.binary_brier_score(*rows) for rows in both],
    }
    for name, (before, after) in lines.items():
        print(f"{name:28}{before:15.4f}{after:15.4f}")
    fits = [jl.fit_logistic(jnp.stack([jnp.ones_like(x), x], axis=1), y) for x, y in both]
    summaries = [jl.summarize(fit) for fit in fits]
    for i, name in enumerate(("calibration intercept", "calibration slope")):
        cells = (f"{s.coefficients[i]:.2f} ± {s.standard_errors[i]:.2f}" for s in summaries)
        print(f"{name:28}{''.join(f'{cell:>15}' for cell in cells)}")


# %% [markdown]
# ## The figure
#
# A reliability diagram shows accuracy over confidence; calibrated models are on the diagonal. The
# larger a dot, the more images are in its bin. The third panel, in the same colours, is about nines
# only; a bin has so few of them that its rate has a wide 95 % interval. The last one shows the
# coverage of the sets over the promised coverage.


# %%
BEFORE, AFTER, REST = "#c8442d", "#2a7f62", "#b8bec6"


def draw_reliability(axes: plt.Axes, answers: Answers, title: str, color: str) -> None:
    """Accuracy over confidence, a dot for each bin."""
    curve = jl.reliability_curve(answers.logits, answers.labels)
    error = jl.expected_calibration_error(answers.logits, answers.labels)
    axes.plot([0, 1], [0, 1], color=REST, linewidth=1)
    axes.vlines(curve.confidence, curve.confidence, curve.accuracy, color=color, linewidth=1)
    sizes = 15 + 200 * curve.weight / curve.weight.sum()
    axes.scatter(curve.confidence, curve.accuracy, s=sizes, color=color, alpha=0.8, linewidth=0)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.08), ylim=(0, 1.08))
    axes.set_title(f"{title}: error {error:.3f}", fontsize=11)


def wilson(rate: Array, number: Array) -> tuple[Array, Array]:
    """The ends of 95 % intervals of rates among so many rows."""
    z2 = 1.96**2
    middle = (rate + z2 / (2 * number)) / (1 + z2 / number)
    reach = jnp.sqrt(z2 * (rate * (1 - rate) / number + z2 / (4 * number**2))) / (1 + z2 / number)
    return middle - reach, middle + reach


def draw_nines(axes: plt.Axes, test: Answers, temperature: Array) -> None:
    """The rate of nines over their probability with intervals, before and after."""
    axes.plot([0, 1], [0, 1], color=REST, linewidth=1)
    calibrated = test._replace(logits=test.logits / temperature)
    for answers, color in ((test, BEFORE), (calibrated, AFTER)):
        curve = jl.binary_reliability_curve(*ask_for_nines(answers), num_bins=5)
        axes.vlines(curve.probability, *wilson(curve.rate, curve.weight), color=color, linewidth=1)
        sizes = 15 + 200 * curve.weight / curve.weight.sum()
        axes.scatter(curve.probability, curve.rate, s=sizes, color=color, alpha=0.8, linewidth=0)
    axes.set(xlabel="probability of a nine", ylabel="rate", xlim=(-0.08, 1.08), ylim=(-0.08, 1.08))
    axes.set_title("Is it a nine?", fontsize=11)


def draw_coverage(axes: plt.Axes, held_out: Answers, test: Answers) -> None:
    """The sets' coverage over the promised one."""
    promises = jnp.linspace(0.5, 0.99, 50)
    axes.plot([0.5, 1], [0.5, 1], color=REST, linewidth=1)
    for kind, color in zip(SCORES, ("#30507a", "#c79a2b"), strict=True):
        covered, _ = measure_sets(kind, promises, held_out, test)
        axes.plot(promises, covered, color=color, label=kind)
    axes.set(xlabel="coverage promised", ylabel="coverage", xlim=(0.5, 1), ylim=(0.5, 1))
    axes.set_title("Conformal sets", fontsize=11)
    axes.legend(title="score", frameon=False, loc="lower right")


def draw(path: Path, held_out: Answers, test: Answers, temperature: Array) -> None:
    """Save the figure."""
    figure, axes = plt.subplots(2, 2, figsize=(5.2, 5.4), layout="constrained")
    axes = axes.ravel()
    draw_reliability(axes[0], test, "As trained", BEFORE)
    draw_reliability(axes[1], test._replace(logits=test.logits / temperature), "Calibrated", AFTER)
    draw_nines(axes[2], test, temperature)
    draw_coverage(axes[3], held_out, test)
    for axis in axes:
        axis.set_aspect("equal")
        axis.set_axisbelow(True)
        axis.grid(color="#e6e8eb", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)


# %% [markdown]
# ## Putting it together


# %%
def main(
    steps: int = 1000, figure: Path = Path("examples/output/calibrate.png")
) -> jl.TemperatureFit:
    """Train, calibrate, show, draw; returns the fitted temperature."""
    train_data, held_out_data, test_data = load_data()
    network = train(train_data, steps)
    held_out, test = (
        Answers(predict(network, data.images), data.labels) for data in (held_out_data, test_data)
    )
    fit = jl.fit_temperature(held_out.logits, held_out.labels)
    show_calibration(test.logits, test.labels, fit.temperature)
    show_nines(test, fit.temperature)
    show_sets(held_out, test)
    draw(figure, held_out, test, fit.temperature)
    print(f"\nfigure: {figure}")
    return fit


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Calibrate a classifier of handwritten digits.")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--figure", type=Path, default=Path("examples/output/calibrate.png"))
    options = parser.parse_args()
    main(options.steps, options.figure)
