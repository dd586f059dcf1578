# %% [markdown]
# # Odds ratios: the other meaning of logit
#
# In statistics the logit is a *link*: the log-odds of an event are a linear function of the
# features. Each coefficient, exponentiated, is an odds ratio: the factor by which one more unit of
# a feature multiplies the odds. Here we ask which measurements of a cell sample indicate cancer,
# and how certain that is, and see that the model is a logits layer with a single unit.
#
# Run it with `pip install -e '.[examples]' && python examples/odds.py`.

# %%
import argparse
import functools
from pathlib import Path
from typing import NamedTuple

import _endometrial
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer
from tqdm import tqdm

import jaxlogits as jl

Array = jax.Array


# %% [markdown]
# ## The data
#
# scikit-learn comes with 569 biopsies, of which 212 were malignant. We take four measurements of
# the cell nuclei, standardized, and a column of ones, because no function of this library adds an
# intercept.


# %%
MEASURED = ["mean radius", "mean texture", "mean smoothness", "mean concavity"]
NAMES = ["intercept", *MEASURED]


class Samples(NamedTuple):
    """N rows of an intercept and four measurements, and whether each was malignant."""

    features: Array  # [N, 5]
    labels: Array  # [N], 1 for malignant


def load_data() -> Samples:
    """All samples."""
    data = load_breast_cancer()
    columns = data.data[:, [list(data.feature_names).index(name) for name in MEASURED]]
    standard = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    features = jnp.concatenate([jnp.ones([len(standard), 1]), jnp.asarray(standard)], axis=1)
    # In the data 0 is malignant.
    return Samples(features.astype(jnp.float32), jnp.asarray(data.target == 0, jnp.float32))


# %% [markdown]
# ## The fit
#
# `fit_logistic` maximizes the likelihood of the labels by Newton's method, in a few steps. The
# curvature at the maximum gives the covariance of the coefficients, and with it standard errors,
# tests and intervals.


# %%
def show_table(fit: jl.LogisticFit) -> None:
    """Print the fit as statistics packages do, with odds ratios."""
    columns = ["", "coef", "std err", "z", "P>|z|", "odds ratio", "[0.025", "0.975]"]
    table = Table(*columns, title="log-odds of malignant")
    for column in table.columns[1:]:
        column.justify = "right"
    summary = jl.summarize(fit)
    ends = jnp.exp(summary.confidence_intervals)  # of the odds ratios
    numbers = [summary.coefficients, summary.standard_errors, summary.z_values, summary.p_values]
    numbers += [summary.odds_ratios, ends[:, 0], ends[:, 1]]
    formats = ["{:.3f}", "{:.3f}", "{:.2f}", "{:.1e}", "{:.2f}", "{:.2f}", "{:.2f}"]
    for i, name in enumerate(NAMES):
        table.add_row(name, *(f.format(float(x[i])) for f, x in zip(formats, numbers, strict=True)))
    Console(width=100).print(table)
    print(f"log likelihood {fit.log_likelihood:.2f} after {fit.steps} steps")
    test = summary.likelihood_ratio
    print(f"that of an intercept alone {summary.null_log_likelihood:.2f}", end=", ")
    print(f"McFadden's R2 {summary.mcfadden_r2:.3f}, AIC {summary.aic:.1f}, BIC {summary.bic:.1f}")
    # In float32 p itself is 0.
    print(f"likelihood ratio {test.statistic:.1f}", end=", ")
    print(f"p = 10^{test.log_p_value / jnp.log(10.0):.0f} ({test.degrees_of_freedom} d.f.)")


# %% [markdown]
# ## The bootstrap
#
# Those intervals assume that the model is right. The bootstrap doesn't: it resamples the data with
# replacement, fits again, and looks at how the coefficients vary. Drawing a sample three times
# means giving it weight 3, so a thousand fits are one `vmap` over a thousand rows of weights.


# %%
@jax.jit
def bootstrap(data: Samples, keys: Array) -> jl.LogisticFit:
    """One fit for each key, to as many samples drawn with replacement."""
    num_samples = len(data.labels)

    def fit(key: Array) -> jl.LogisticFit:
        drawn = jax.random.randint(key, [num_samples], 0, num_samples)
        return jl.fit_logistic(*data, weights=jnp.bincount(drawn, length=num_samples))

    return jax.vmap(fit)(keys)


def show_bootstrap(fit: jl.LogisticFit, fits: jl.LogisticFit) -> None:
    """Print both intervals of each coefficient."""
    good = fits.coefficients[fits.converged]
    print(f"\n{len(good)} of {len(fits.converged)} bootstrap fits converged; 95 % intervals:")
    wald = jl.summarize(fit).confidence_intervals
    drawn = jnp.quantile(good, jnp.array([0.025, 0.975]), axis=0)
    print(f"{'':16}  {'Wald':>16}  {'bootstrap':>16}")
    for i, name in enumerate(NAMES):
        both = (f"{low:7.2f}  {high:7.2f}" for low, high in (wald[i], drawn[:, i]))
        print(f"{name:16}  {'  '.join(both)}")


# %% [markdown]
# ## The two meanings meet
#
# A neural network's last layer computes logits: a linear function of its inputs, trained by
# gradient descent on a cross entropy. With one unit, and the measurements as inputs, its loss is
# the negative log likelihood that Newton's method minimized. So the kernel that it learns *is* the
# vector of coefficients, and its logit is the log-odds.


# %%
def train_layer(data: Samples, steps: int) -> Array:
    """The kernel of a one-unit logits layer [5], by gradient descent."""
    optimizer = optax.sgd(learning_rate=1.0, momentum=0.9, nesterov=True)
    kernel = jnp.zeros([len(NAMES)])
    state = optimizer.init(kernel)

    def mean_loss(kernel: Array) -> Array:
        return jl.sigmoid_binary_cross_entropy(data.features @ kernel, data.labels).mean()

    @jax.jit
    def step(kernel: Array, state: optax.OptState) -> tuple[Array, optax.OptState]:
        updates, state = optimizer.update(jax.grad(mean_loss)(kernel), state)
        return optax.apply_updates(kernel, updates), state

    for _ in tqdm(range(steps), desc="training", unit="step"):
        kernel, state = step(kernel, state)
    return kernel


def show_layer(fit: jl.LogisticFit, kernel: Array, steps: int) -> None:
    """Print the kernel beside the coefficients."""
    print(f"\nthe kernel of a one-unit logits layer, after {steps} steps of gradient descent:")
    for name, coefficient, learned in zip(NAMES, fit.coefficients, kernel, strict=True):
        print(f"{name:16}  {coefficient:9.4f}  {learned:9.4f}")


# %% [markdown]
# ## Separated data, and Firth's penalty
#
# Of 79 women with endometrial cancer, all thirteen whose tumour has new vessels have a high-grade
# tumour: quasi-complete separation. So the likelihood keeps growing with that coefficient, and most
# packages print some large number with a huge standard error. `fit_logistic` reports that the data
# are separated, and gives no standard errors. Firth's method adds half the log determinant of the
# information to the log likelihood, which falls where the likelihood becomes flat, so that there is
# a maximum.
#
# How certain is the estimate? Wald's interval approximates the log likelihood by a parabola, which
# is wrong here. The profile likelihood is the largest likelihood for each value of a coefficient.
# The values for which its logarithm is within 1.92 of the maximum (half the 95 % quantile of
# chi-squared) are the interval that Heinze and Schemper recommend. The value goes into the offset,
# and a strong penalty `l2` keeps the coefficient itself at 0.


# %%
VESSELS = 1  # the column of new vessels


class Profile(NamedTuple):
    """The largest log likelihoods [V] for values of the new vessels' coefficient [V]."""

    values: Array
    plain: Array  # at most 0
    penalized: Array  # by half the log determinant; at most 0
    estimate: Array  # the coefficient with Firth's penalty
    interval: tuple[float, float]


def profile_likelihoods(features: Array, labels: Array, firth: jl.LogisticFit) -> Profile:
    """With and without the penalty."""
    pinned = jnp.zeros(features.shape[1]).at[VESSELS].set(1e6)

    def largest(value: Array, *, firth: bool) -> Array:
        known = value * features[:, VESSELS]
        fit = jl.fit_logistic(features, labels, offset=known, l2=pinned, firth=firth)
        return fit.log_likelihood

    values = jnp.linspace(-1.0, 11.0, 241)
    plain = jax.vmap(functools.partial(largest, firth=False))(values)
    penalized = jax.vmap(functools.partial(largest, firth=True))(values) - firth.log_likelihood
    top = jnp.argmax(penalized)
    low = jnp.interp(-1.92, penalized[: top + 1], values[: top + 1])
    high = jnp.interp(1.92, -penalized[top:], values[top:])
    estimate = firth.coefficients[VESSELS]
    return Profile(values, plain - jnp.max(plain), penalized, estimate, (float(low), float(high)))


def show_separated() -> Profile:
    """Print both fits, and return what the figure shows."""
    features, labels = (jnp.asarray(x, jnp.float32) for x in _endometrial.load())
    plain = jl.fit_logistic(features, labels)
    firth = jl.fit_logistic(features, labels, firth=True)
    print(f"\nendometrial cancer: separated is {plain.separated}")
    print(f"{'':16}  {'no penalty':>16}  {'Firth':>16}")
    print(f"{'':16}{2 * f'  {chr(32) * 3}coef  std err'}")
    summaries = [jl.summarize(fit) for fit in (plain, firth)]
    for i, name in enumerate(_endometrial.NAMES):
        pairs = (f"{s.coefficients[i]:7.3f}  {s.standard_errors[i]:7.3f}" for s in summaries)
        print(f"{name:16}  {'  '.join(pairs)}")
    profile = profile_likelihoods(features, labels, firth)
    low, high = summaries[1].confidence_intervals[VESSELS]
    p_value = summaries[1].p_values[VESSELS]
    print(f"new vessels, 95 % interval by Wald:    {low:5.2f} to {high:.2f}, p = {p_value:.3f}")
    low, high = profile.interval
    statistic = -2 * jnp.interp(0.0, profile.values, profile.penalized)
    p_value = jax.scipy.special.erfc(jnp.sqrt(statistic / 2))
    print(f"  by the profile likelihood:           {low:5.2f} to {high:.2f}, p = {p_value:.3f}")
    return profile


def draw_separated(axes: plt.Axes, profile: Profile) -> None:
    """Both likelihoods over the coefficient, and the intervals."""
    axes.axvspan(*profile.interval, color="#2a7f62", alpha=0.1, linewidth=0)
    axes.axhline(-1.92, color="#2a7f62", linewidth=1, linestyle=":")
    axes.plot(profile.values, profile.plain, color="#7b838d", linewidth=2, label="no penalty")
    axes.plot(profile.values, profile.penalized, color="#2a7f62", linewidth=2, label="Firth")
    axes.plot(profile.estimate, 0, "o", color="#2a7f62")
    axes.set(xlabel="coefficient of new vessels", ylim=(-5, 0.3))
    axes.set_ylabel("relative to the maximum")
    axes.set_title("Separated data: profile log likelihoods", fontsize=11)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)


# %% [markdown]
# ## The figure
#
# The distribution of the bootstrap's odds ratios, with the Wald intervals; below, the profile
# likelihood of the separated data. Without a penalty it keeps rising. With Firth's it has a
# maximum, and the shaded interval, which isn't symmetric around that, doesn't contain 0.


# %%
def draw_bootstrap(axes: plt.Axes, fit: jl.LogisticFit, fits: jl.LogisticFit) -> None:
    """Odds ratios with both kinds of spread."""
    coefficients = fits.coefficients[fits.converged]
    intervals = jl.summarize(fit).confidence_intervals
    for place, name in enumerate(MEASURED):
        i = NAMES.index(name)
        parts = axes.violinplot(coefficients[:, i], [place], orientation="horizontal", widths=0.8)
        parts["bodies"][0].set_color("#30507a")
        for line in ("cmins", "cmaxes", "cbars"):
            parts[line].set_visible(False)
        axes.plot(intervals[i], [place, place], color="#c8442d", linewidth=2)
        axes.plot(fit.coefficients[i], place, "o", color="#c8442d")
    axes.axvline(0, color="#b8bec6", zorder=0)
    ratios = jnp.array([1, 2, 5, 10, 20, 50, 100, 200, 500])
    axes.set_xticks(jnp.log(ratios), [f"{ratio}" for ratio in ratios])
    axes.set_xlabel("odds ratio for one standard deviation more")
    axes.set_yticks(range(len(MEASURED)), MEASURED)
    axes.invert_yaxis()
    axes.set_title(f"Wald intervals (95 %) over {len(coefficients)} bootstrap fits", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)


def draw(path: Path, fit: jl.LogisticFit, fits: jl.LogisticFit, separated: Profile) -> None:
    """Save the figure."""
    figure, axes = plt.subplots(2, 1, figsize=(5.2, 6.4), layout="constrained")
    draw_bootstrap(axes[0], fit, fits)
    draw_separated(axes[1], separated)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)


# %% [markdown]
# ## Putting it together


# %%
def main(
    resamples: int = 1000, steps: int = 1000, figure: Path = Path("examples/output/odds.png")
) -> tuple[jl.LogisticFit, Array]:
    """Fit, resample, train, draw; returns the fit and the layer's kernel."""
    data = load_data()
    fit = jax.jit(jl.fit_logistic)(*data)
    show_table(fit)
    fits = bootstrap(data, jax.random.split(jax.random.key(0), resamples))
    show_bootstrap(fit, fits)
    kernel = train_layer(data, steps)
    show_layer(fit, kernel, steps)
    draw(figure, fit, fits, show_separated())
    print(f"\nfigure: {figure}")
    return fit, kernel


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Odds ratios of breast cancer, four ways.")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--figure", type=Path, default=Path("examples/output/odds.png"))
    options = parser.parse_args()
    main(options.resamples, options.steps, options.figure)
