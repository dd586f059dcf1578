"""What ``fuzz.py`` draws of fits and calibration errors, against float64.

Coefficients are judged in standard errors, whichever units the columns have.

    python tests/fuzz.py --only fit_logistic --case 1234567
"""

import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import references
import scipy.optimize

import jaxlogits as jl

Array = np.ndarray
Random = np.random.Generator
N = 24
SETTINGS = tuple(
    (mode, dtype) for mode in ("value", "vmap", "derivative") for dtype in ("float32", "float64")
)


# Regression. Everything is classes: yes and no are two.


class Problem(NamedTuple):
    """Arguments of a fit, and what they say in float64."""

    args: dict[str, Any]  # of ``fit_logistic`` or ``fit_multinomial``, without what is static
    static: dict[str, Any]

    @property
    def features(self) -> Array:
        return self.args["features"].astype(float)

    @property
    def truth(self) -> Array:
        """[N, K], how often each class was seen, by the weights."""
        labels = self.args["labels"]
        if "num_classes" in self.static:
            seen = np.eye(self.static["num_classes"])[labels]
        else:
            yes = labels.astype(float)
            seen = np.stack([self.args.get("trials", np.ones(N)) - yes, yes], axis=1)
        return seen * self.args.get("weights", np.ones(N)).astype(float)[:, None]

    @property
    def offset(self) -> Array:
        """[N, K], of which the first is 0."""
        known = self.args.get("offset", np.zeros([N, self.truth.shape[1] - 1])).astype(float)
        return np.concatenate([np.zeros([N, 1]), known.reshape(N, -1)], axis=1)


def problem_of(name: str, rng: Random, fixed: Random, dtype: str) -> Problem:
    """A column of ones, and others in all units, some far from 0, or with a row that is."""
    size, kind = int(fixed.integers(1, 4)), fixed.integers(3)
    far = rng.choice([0.0, 0.0, 0.0, 2000.0], size=size - 1)
    unit = rng.choice([1.0, 1.0, 1e-3, 100.0], size=size - 1) if not far.any() else 5.0
    columns = rng.normal(size=(N, size - 1))
    columns[0] *= 1.0 if kind == 2 else rng.choice([1.0, 1.0, 1e3])  # rare and far out is too much
    columns = np.where(rng.random(size - 1) < 0.2, columns > 0, columns) * unit + far
    features = np.concatenate([np.ones([N, 1]), columns], axis=1).astype(dtype)
    slopes = rng.choice([0.3, 1.0, 6.0]) * rng.normal(size=size)
    z = (columns - columns.mean(0)) / (columns.std(0) + 1e-30) @ slopes[1:] + slopes[0]
    args: dict[str, Any] = {"features": features}
    if name == "fit_multinomial":
        static = {"num_classes": 3}
        noise = rng.gumbel(size=(N, 3)) + np.stack([0 * z, z, -0.5 * z], axis=1)
        args["labels"] = np.argmax(noise, axis=1).astype(np.int32)
    else:
        static = {}
        p = references.sigmoid(z)
        args["labels"] = (rng.random(N) < p).astype(dtype)
        if kind == 1:
            args["labels"] = (rng.integers(0, 9, size=N) / 8).astype(dtype)
        elif kind == 2:
            args |= counts(p, rng, dtype)
    if fixed.random() < 0.5:
        repeats = rng.choice([0.0, 1.0, 1.0, 2.5], size=N) * rng.choice([1e-9, 1.0, 1e6])
        args["weights"] = repeats.astype(dtype)
    if fixed.random() < 0.5:
        known = rng.normal(size=(N, 2) if static else N)
        args["offset"] = (known + rng.choice([0.0, 0.0, 30.0, -30.0])).astype(dtype)
    return Problem(args, static)


def counts(p: Array, rng: Random, dtype: str) -> dict[str, Any]:
    """Successes and trials, a few or of what is rare."""
    rare = rng.choice([1.0, 1.0, 1e-5])
    trials = rng.choice([1, 10, 1000] if rare == 1.0 else [10**6, 10**7], size=N)
    return {
        "trials": trials.astype(dtype),
        "labels": rng.binomial(trials, rare * p).astype(dtype),
    }


def exact(problem: Problem) -> tuple[Array, Array, float] | None:
    """Coefficients [P, K - 1] by Newton's method, the root of their information, the likelihood.

    None for collinear columns, or where no maximum is found, as of separated data.
    """
    x, truth = problem.features, problem.truth
    counts = truth.sum(axis=1) > 0
    x, truth, offset = x[counts], truth[counts], problem.offset[counts]
    weights = truth.sum(axis=1)
    if len(x) <= x.shape[1] or weights.max() == 0:
        return None
    basis, back = np.linalg.qr(x / np.linalg.norm(x, axis=0))
    if np.linalg.cond(back) > 1e5:
        return None
    j = truth.shape[1] - 1
    shares = (truth + 0.5 * weights[:, None] / (j + 1)) / (1.5 * weights[:, None])
    start = np.log(shares[:, 1:] / shares[:, :1]) - offset[:, 1:]
    b = basis.T @ start
    for _ in range(60):
        log_p, p, hessian = _at(b, basis, offset, weights)
        slope = basis.T @ (weights[:, None] * p - truth)[:, 1:]
        if np.linalg.cond(hessian) > 1e10:
            return None
        step = np.linalg.solve(hessian, slope.ravel()).reshape(b.shape)
        before, factor = np.sum(truth * log_p), 1.0
        while np.sum(truth * _at(b - factor * step, basis, offset, weights)[0]) < before - 1e-12 * (
            abs(before)
        ):
            factor /= 2
            if factor < 1e-6:
                break
        b = b - factor * step
        if max(abs(step).max() * np.sqrt(weights.max()), abs(step).max()) < 1e-12:
            break
    log_p, _, hessian = _at(b, basis, offset, weights)
    is_far = abs(basis @ b + offset[:, 1:]).max() > 25 + abs(offset).max()
    sizes = np.linalg.eigvalsh(hessian)
    if is_far or not sizes[0] > 1e-10 * sizes[-1]:
        return None  # as good as separated
    turn = back * np.linalg.norm(x, axis=0)
    root = np.linalg.cholesky(hessian).T @ np.kron(turn, np.eye(j))
    return np.linalg.solve(turn, b), root, float(np.sum(truth * log_p))


def _at(b: Array, x: Array, offset: Array, weights: Array) -> tuple[Array, Array, Array]:
    z = offset + np.concatenate([np.zeros([len(x), 1]), x @ b], axis=1)
    log_p = references.log_softmax(z)
    p = np.exp(log_p)
    j = b.shape[1]
    spread = p[:, 1:, None] * (np.eye(j) - p[:, None, 1:])
    hessian = np.einsum("n,np,nq,njk->pjqk", weights, x, x, spread)
    return log_p, p, hessian.reshape(b.size, b.size)


@functools.cache
def fit_program(name: str, mode: str, static: tuple[tuple[str, Any], ...]) -> Any:
    def fit(args: Any) -> Any:
        return getattr(jl, name)(**args, **dict(static))

    def derivative(args: Any, along: Any) -> Any:
        def coefficients(moved: Any) -> Any:
            return fit({**args, **moved}).coefficients

        return jax.jvp(coefficients, [{k: args[k] for k in along}], [along])[1]

    if mode == "vmap":
        return jax.jit(jax.vmap(fit))
    return jax.jit(derivative) if mode == "derivative" else fit


def regression(name: str, rng: Random, fixed: Random, mode: str, dtype: str) -> str | None:
    problem = problem_of(name, rng, fixed, dtype)
    want = exact(problem)
    static = tuple(problem.static.items())
    if mode == "derivative":
        return _bad_slopes(problem, want, rng, fit_program(name, mode, static))
    if mode == "vmap":
        # Beside a fit that takes longer or isn't one.
        twice = {k: np.stack([x, rng.permutation(x, axis=0)]) for k, x in problem.args.items()}
        fit = jax.tree.map(lambda x: np.asarray(x)[0], fit_program(name, mode, static)(twice))
    else:
        fit = jax.tree.map(np.asarray, fit_program(name, mode, static)(problem.args))
    if want is None:
        return _bad_separation(problem, fit)
    return _bad_fit(problem, fit, *want)


def _bad_fit(problem: Problem, fit: Any, b: Array, root: Array, likelihood: float) -> str | None:
    wide = problem.features.dtype == problem.args["features"].dtype
    if not fit.converged or fit.separated:
        return f"converged {fit.converged}, separated {fit.separated} of a fit with a maximum"
    # In standard errors. Log-odds are rounded, which many trials see.
    n = np.sqrt(problem.truth.sum(axis=1).max())
    offset = 1 + abs(problem.offset).max()
    allowed = 1e-6 if wide else 1e-3 * (1 + 1e-3 * n * offset)
    off = np.linalg.norm(root @ (fit.coefficients.reshape(b.shape) - b).ravel())
    if not off <= allowed * max(1.0, min(n, 1e3)):
        return f"{fit.coefficients.ravel()}, {off:.2g} standard errors from {b.ravel()}"
    covariance = np.linalg.inv(root.T @ root)
    errors = np.sqrt(np.diag(covariance))
    off = abs(fit.covariance.reshape(root.shape) - covariance) / np.outer(errors, errors)
    if not off.max() <= (1e-6 if wide else 2e-3 * (1 + 1e-3 * n * offset)):
        return f"the covariance is {off.max():.2g} of itself off"
    if "trials" not in problem.args:
        off = abs(fit.log_likelihood - likelihood) / abs(likelihood)
        if not off <= (1e-8 if wide else 1e-4):
            return f"log likelihood {fit.log_likelihood}, not {likelihood}"
    return "a deviance below 0" if fit.deviance < 0 else None


def _bad_separation(problem: Problem, fit: Any) -> str | None:
    """By linear programming: a direction along which no label that was seen gets less likely."""
    x, truth = problem.features, problem.truth
    seen = truth > 0
    x, seen = x[seen.any(axis=1)], seen[seen.any(axis=1)]
    if len(x) <= x.shape[1] or np.linalg.cond(x / np.linalg.norm(x, axis=0)) > 1e5:
        return None
    basis = np.linalg.qr(x)[0]
    classes = np.eye(truth.shape[1])[:, 1:]
    rows, of_seen = np.nonzero(seen)
    # How far each of the other classes falls behind.
    gains = classes[of_seen][:, None] - classes[None]
    gains = np.einsum("np,nkj->nkpj", basis[rows], gains).reshape(-1, x.shape[1] * classes.shape[1])
    best = scipy.optimize.linprog(-gains.sum(0), -gains, np.zeros(len(gains)), bounds=(-1, 1))
    if -best.fun > 1e-3 and not fit.separated:
        return f"separated data, of which converged is {fit.converged}, separated {fit.separated}"
    if -best.fun < 1e-9 and fit.separated:
        return "separated is True of data that aren't"
    return None


def _bad_slopes(problem: Problem, want: Any, rng: Random, fn: Any) -> str | None:
    """Of the coefficients, along a direction in all that is differentiated."""
    wide = problem.args["features"].dtype == np.float64
    along = {
        k: rng.choice([-1.0, 0.5, 1.0], size=x.shape).astype(x.dtype)
        for k, x in problem.args.items()
        if x.dtype.kind == "f" and k not in ("trials", "features")
    }
    if "labels" in along:
        # What keeps labels of 0 and 1 in their range, on one side.
        share = problem.args["labels"] / problem.args.get("trials", np.ones(N))
        inside = (share > 0) & (share < 1)
        along["labels"] = np.where(inside, along["labels"], 0.0).astype(along["labels"].dtype)
    if "weights" in along:
        w = problem.args["weights"]
        along["weights"] = (along["weights"] * w).astype(w.dtype)
    if not along or want is None:
        return None
    got = np.asarray(fn(problem.args, along)).astype(float)

    def moved(h: float) -> Any:
        args = {k: x.astype(float) if x.dtype.kind == "f" else x for k, x in problem.args.items()}
        args |= {k: args[k] + h * x.astype(float) for k, x in along.items()}
        return exact(Problem(args, problem.static))

    h = 1e-4
    points = [moved(s * h) for s in (2, 1, -1, -2)]
    if any(point is None for point in points):
        return None
    far, near = points[0][0] - points[3][0], points[1][0] - points[2][0]
    slopes = (8 * near - far) / (12 * h)
    root = want[1]
    off = np.linalg.norm(root @ (got.reshape(slopes.shape) - slopes).ravel())
    size = np.linalg.norm(root @ slopes.ravel())
    scale = max(1.0, np.sqrt(problem.truth.sum(axis=1).max()))
    offset = 1 + abs(problem.offset).max()
    if off <= (1e-4 if wide else 5e-3 * offset) * (scale + size):
        return None
    return f"slopes of the coefficients {off:.2g} standard errors off, of {size:.2g}: {got.ravel()}"


def firth(rng: Random, fixed: Random, mode: str, dtype: str) -> str | None:
    """Firth's fit has a maximum whatever the data, where the score less its bias is 0."""
    problem = problem_of("fit_logistic", rng, fixed, dtype)._replace(static={"firth": True})
    x, truth, offset = problem.features, problem.truth, problem.offset[:, 1:]
    weights = truth.sum(axis=1)
    keep = weights > 0
    x, truth, offset, weights = x[keep], truth[keep], offset[keep], weights[keep]
    if "weights" in problem.args and problem.args["weights"].max() not in (1.0, 2.5):
        return None  # of a billionth of a row there is nothing but the penalty
    if len(x) <= x.shape[1] or np.linalg.cond(x / np.linalg.norm(x, axis=0)) > 1e5:
        return None
    static = (("firth", True),)
    args = problem.args
    if mode == "vmap":
        args = {k: np.stack([x, rng.permutation(x, axis=0)]) for k, x in args.items()}
    fit = jax.tree.map(np.asarray, fit_program("fit_logistic", _no_slopes(mode), static)(args))
    b = (fit.coefficients[0] if mode == "vmap" else fit.coefficients).astype(float)
    p = references.sigmoid(x @ b + offset[:, 0])
    root = np.sqrt(weights * p * (1 - p))[:, None] * x
    basis = np.linalg.qr(root)[0]
    # What each row pulls by itself, all its repetitions together.
    pulls = np.sum(basis**2, axis=1) * (0.5 - p)
    score = x.T @ (truth[:, 1] - weights * p + pulls)
    off = np.sqrt(score @ np.linalg.solve(root.T @ root, score))
    wide = dtype == "float64"
    n, size = np.sqrt(weights.max()), 1 + abs(offset).max()
    allowed = 1e-6 if wide else 2e-3 * size * max(1.0, 1e-3 * n * size)
    converged = np.all(fit.converged[0] if mode == "vmap" else fit.converged)
    if converged and off <= allowed:
        return None
    return f"converged {converged}, {off:.2g} standard errors from where the score is 0, {b}"


def _no_slopes(mode: str) -> str:
    return "value" if mode == "derivative" else mode


# Calibration.


def rows_of_classes(rng: Random, dtype: str, num_classes: int) -> tuple[Array, Array]:
    z = rng.choice([0.3, 2.0, 8.0]) * rng.normal(size=(4 * N, num_classes))
    noise = rng.gumbel(size=z.shape) + z * rng.choice([0.1, 0.5, 2.0])
    labels = np.argmax(noise, axis=1).astype(np.int32)
    other = (np.arange(num_classes) != labels[:, None]) & (rng.random(z.shape) < 0.1)
    removed = rng.choice([-np.inf, -1e9, 0.0])
    z = np.where(other & (removed != 0.0), removed, z)
    return z.astype(dtype), labels


def chosen(rng: Random, fixed: Random, dtype: str) -> dict[str, Any]:
    found = {}
    if fixed.random() < 0.5:
        found["where"] = rng.random(4 * N) < 0.7
    if fixed.random() < 0.5:
        unit = rng.choice([1e-9, 1.0, 1e6])
        found["weights"] = (unit * rng.choice([0.0, 1.0, 2.5], size=4 * N)).astype(dtype)
    return found


@functools.cache
def calibration_program(name: str, mode: str) -> Any:
    def fn(z: Any, labels: Any, more: Any) -> Any:
        return getattr(jl, name)(z, labels, **more)

    if mode == "vmap":
        twice = jax.vmap(fn, in_axes=(0, None, None))
        return jax.jit(lambda z, *rest: jax.tree.map(lambda x: x[0], twice(z[None], *rest)))
    return fn


def calibration(name: str, rng: Random, fixed: Random, mode: str, dtype: str) -> str | None:
    is_binary = name.startswith("binary") or name == "fit_platt"
    z, labels = rows_of_classes(rng, dtype, int(fixed.choice([2, 5])))
    if is_binary:
        z = np.where(np.isfinite(z[:, 0]) & (abs(z[:, 0]) < 1e3), z[:, 0], 0).astype(dtype)
        labels = (rng.random(4 * N) < references.sigmoid(0.5 * z.astype(float))).astype(np.int32)
    more = chosen(rng, fixed, dtype)
    keep = more.get("where", np.ones(4 * N, bool)) & (more.get("weights", np.ones(4 * N)) > 0)
    given = z.copy()
    given[~keep & (rng.random(4 * N) < 0.3)] = np.nan  # which isn't read
    if name in SLOPES and mode == "derivative":
        return _bad_slope(name, rng, given, (z, labels, more), dtype)
    if name == "fit_vector_scaling":
        more["l2"] = np.asarray(rng.choice([0.1, 1.0, 10.0]), dtype)
        z = np.where(z == -1e9, -np.inf, z)
    got = calibration_program(name, _no_slopes(mode))(given, labels, more)
    return _bad_number(name, got, (z.astype(float), labels, more), dtype)


# Those of which a small change of the logits changes a little.
SLOPES = (
    *("expected_calibration_error", "maximum_calibration_error", "classwise_calibration_error"),
    *("brier_score", "binary_calibration_error", "binary_brier_score"),
)


@functools.cache
def _slope_program(name: str) -> Any:
    def slope(z: Any, direction: Any, labels: Any, more: Any) -> Any:
        def fn(z: Any) -> Any:
            return getattr(jl, name)(z, labels, **more)

        return jax.jvp(fn, [z], [direction])[1], jax.grad(fn)(z)

    return jax.jit(slope)


def _bad_slope(name: str, rng: Random, given: Array, args: Any, dtype: str) -> str | None:
    """Forwards and backwards, against differences where those of both sides agree."""
    z, labels, more = args
    z = np.where(z == -1e9, -np.inf, z)
    signs = rng.choice([-1.0, 0.5, 1.0], size=z.shape)
    forwards, gradient = _slope_program(name)(given, signs.astype(dtype), labels, more)
    forwards = float(forwards)
    gradient = np.asarray(gradient).astype(float)
    if not np.isfinite(gradient).all():
        return f"a gradient of {gradient[~np.isfinite(gradient)][0]}"
    exact = {k: x if x.dtype.kind == "b" else x.astype(float) for k, x in more.items()}
    oracle = getattr(references, name)

    def at(h: float) -> float:
        return float(oracle(z.astype(float) + h * signs, labels, **exact))

    h = 1e-6
    before, here, after = at(-h), at(0.0), at(h)
    sides = (after - here) / h, (here - before) / h
    allowed = (1e-5 if dtype == "float64" else 1e-3) * (1 + abs(sides[0]))
    if abs(sides[0] - sides[1]) > 1e-4 or not np.isfinite(here):
        return None  # at an edge of a bin or a kink
    backwards = float(np.sum(gradient * signs))
    if abs(forwards - sides[0]) <= allowed and abs(backwards - sides[0]) <= allowed:
        return None
    return f"slopes {forwards!r} and {backwards!r}, not {sides[0]!r}"


def _bad_number(name: str, got: Any, args: Any, dtype: str) -> str | None:
    """Judged by the nearest of three oracles: a confidence may be at the edge of a bin."""
    z, labels, more = args
    z = np.where(z == -1e9, -np.inf, z)
    more = {k: x if x.dtype.kind == "b" else x.astype(float) for k, x in more.items()}
    tolerance = 1e-9 if dtype == "float64" else 1e-4
    if name == "fit_temperature":
        return _bad_temperature(got, z, labels, more, tolerance)
    if name == "fit_vector_scaling":
        return _bad_scales(got, z, labels, more, dtype)
    if name == "fit_platt":
        return _bad_line(got, z, labels, more, dtype)
    oracle = getattr(references, name)
    wants = [float(oracle(z * (1 + s), labels, **more)) for s in (0.0, 1e-6, -1e-6)]
    number = float(np.asarray(got))
    if any(abs(number - want) <= tolerance + tolerance * abs(want) for want in wants):
        return None
    if name == "adaptive_calibration_error" and _is_at_an_edge(z, **more):
        return None
    if np.ptp(wants) > 1e-3:  # several rows at edges, each on a side of its own
        return None
    return f"{number!r}, not {wants[0]!r}"


def _is_at_an_edge(z: Array, where: Any = True, weights: Any = 1.0, num_bins: int = 15) -> bool:
    """Whether the middle of a row's share of the weight is where two bins meet."""
    confidence = references.softmax(z).max(axis=1)
    w = (np.ones(len(z)) * weights * where)[np.argsort(confidence)]
    middle = num_bins * (np.cumsum(w) - w / 2)[w > 0] / w.sum()
    return bool(np.any(abs(middle - np.round(middle)) < 1e-4))


def _bad_temperature(got: Any, z: Array, labels: Array, more: Any, tolerance: float) -> str | None:
    """Where the slope of the loss in 1 / T is 0, or never is."""
    keep, w = more.get("where", np.ones(len(z), bool)), more.get("weights", np.ones(len(z)))
    z, labels, w = z[keep], labels[keep], w[keep]
    w = w / w.sum()
    truth = np.eye(z.shape[1])[labels]
    relative = z - np.sum(references.times(truth, z), axis=1, keepdims=True)

    def slope(inverse: float) -> float:
        p = references.softmax(np.where(np.isneginf(z), z, z * inverse))
        return float(w @ np.sum(references.times(p, relative), axis=1))

    inverse = 1 / float(got.temperature)
    if slope(1e-9) >= 0:
        return None if inverse < 1e-6 else f"temperature {got.temperature}, not infinite"
    if slope(1e6) < 0:
        return None if inverse > 1e3 else f"temperature {got.temperature}, not 0"
    if slope(50.0) < 0:
        return None
    want = scipy.optimize.brentq(slope, 1e-9, 50.0, xtol=1e-14)
    h = 1e-4 * want
    curvature = (slope(want + h) - slope(want - h)) / (2 * h)
    # In standard errors of one row, where the loss is flat.
    off = abs(inverse - want) * np.sqrt(max(curvature, 0.0))
    if off <= 10 * tolerance and got.converged:
        return None
    return f"temperature {got.temperature}, not {1 / want}, converged {got.converged}"


def _bad_scales(got: Any, z: Array, labels: Array, more: Any, dtype: str) -> str | None:
    """By the step that Newton's method would still take, in standard errors of the fit."""
    keep, w = more.get("where", np.ones(len(z), bool)), more.get("weights", np.ones(len(z)))
    z, labels, w = z[keep], labels[keep], w[keep]
    scale, bias = (np.asarray(x).astype(float) for x in got[:2])
    k = z.shape[1]
    finite = np.where(np.isneginf(z), 0.0, z)
    p = references.softmax(np.where(np.isneginf(z), -np.inf, finite * scale + bias))
    wrong = w[:, None] * (p - np.eye(k)[labels])
    point = np.concatenate([scale - 1, bias])
    slope = np.concatenate([np.sum(wrong * finite, axis=0), wrong.sum(0)]) + more["l2"] * point
    columns = np.concatenate(
        [finite[:, :, None] * np.eye(k), np.ones_like(finite)[:, :, None] * (np.eye(k))], axis=2
    )
    spread = p[:, :, None] * (np.eye(k) - p[:, None, :]) * w[:, None, None]
    hessian = np.einsum("nap,nab,nbq->pq", columns, spread, columns) + more["l2"] * np.eye(2 * k)
    off = np.sqrt(slope @ np.linalg.solve(hessian, slope))
    # The rounding of each row's slope, of which all come together.
    size = np.sqrt(np.sum(w)) * (1 + abs(finite).max())
    allowed = 1e-7 * (1 + size) if dtype == "float64" else 2e-4 + 2e-6 * size
    if got.converged and off <= allowed:
        return None
    if dtype != "float64" and not got.converged and allowed > 0.1:
        return None  # float32 has no digits left of the steps, and the fit says so
    return f"converged {got.converged}, {off:.2g} standard errors from the minimum"


def _bad_line(got: Any, scores: Array, labels: Array, more: Any, dtype: str) -> str | None:
    """By the step that Newton's method would still take, in standard errors of the fit."""
    keep, w = more.get("where", np.ones(len(scores), bool)), more.get("weights", 1.0)
    w = np.where(keep, w, 0.0)
    yes, no = np.sum(w * labels), np.sum(w * (1 - labels))
    targets = np.where(labels == 1, (yes + 1) / (yes + 2), 1 / (no + 2))
    x = np.stack([scores, np.ones_like(scores)], axis=1)
    line = np.array([float(got.slope), float(got.intercept)])
    p = references.sigmoid(x @ line)
    slope = x.T @ (w * (p - targets))
    off = np.sqrt(slope @ np.linalg.solve((x * (w * p * (1 - p))[:, None]).T @ x, slope))
    scale = max(1.0, np.sqrt(w.max()))
    if got.converged and off <= (1e-7 if dtype == "float64" else 1e-3) * scale:
        return None
    return f"converged {got.converged}, {off:.2g} standard errors from the minimum, at {line}"


def _named(judge: Callable[..., str | None], name: str) -> Callable[..., str | None]:
    return functools.partial(judge, name)


TARGETS = (
    {"firth": firth}
    | {name: _named(regression, name) for name in ("fit_logistic", "fit_multinomial")}
    | {
        name: _named(calibration, name)
        for name in (
            "fit_temperature",
            "fit_vector_scaling",
            "fit_platt",
            "expected_calibration_error",
            "maximum_calibration_error",
            "adaptive_calibration_error",
            "classwise_calibration_error",
            "brier_score",
            "binary_calibration_error",
            "binary_brier_score",
        )
    }
)


def check(name: str, seed: int) -> list[str]:
    """As ``fuzz.check``."""
    index = seed % len(SETTINGS)
    mode, dtype = SETTINGS[index]
    code = zlib.crc32(name.encode())
    rng, fixed = (np.random.default_rng([code, x]) for x in (seed, index))
    with jax.enable_x64(dtype == "float64"), np.errstate(all="ignore"):
        try:
            found = TARGETS[name](rng, fixed, mode, dtype)
        except Exception as error:
            found = f"{type(error).__name__}: {error}".splitlines()[0]
    return [] if found is None else [f"--only {name} --case {seed}  # {mode} {dtype}: {found}"]
