"""What ``fuzz.py`` draws of functions of rows.

python tests/fuzz.py --only softmax --case 1234567
"""

import functools
import types
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import references

import jaxlogits as jl

INF, NAN = np.inf, np.nan
N = 64  # rows of a call, each a case of its own


class Setting(NamedTuple):
    """What a program is compiled for."""

    mode: str
    dtype: str
    num_classes: int
    axis: int


SETTINGS = (
    Setting("jit", "float32", 20, 1),
    Setting("grad", "float32", 5, 1),
    Setting("eager", "bfloat16", 5, 1),
    Setting("jvp", "float32", 20, 0),
    Setting("vmap", "float64", 5, 0),
    Setting("grad", "bfloat16", 20, 1),
    Setting("jit", "float16", 5, 0),
    Setting("grad", "float64", 20, 0),
    Setting("eager", "float32", 1, 0),
    # So many that XLA:CPU takes its fastest loops, and that a row is looked at in pieces.
    Setting("jit", "float32", 100, 1),
    Setting("jit", "float32", 800, 1),
)


class Option(NamedTuple):
    """A number that is drawn from a range, or taken from values of note."""

    low: float
    high: float
    of_note: tuple[Any, ...] = ()

    def draw(self, rng: np.random.Generator) -> Any:
        if self.low == self.high or (self.of_note and rng.random() < 0.4):
            return self.of_note[rng.integers(len(self.of_note))]
        # A float32, so that an oracle in float64 is given the same number.
        return float(np.float32(rng.uniform(self.low, self.high)))


class Target(NamedTuple):
    """A function of rows, and what else it takes."""

    name: str
    others: tuple[str, ...] = ()  # "logits", "labels", "targets", "counts", "prior"
    options: Mapping[str, Option] = types.MappingProxyType({})
    masks: bool = True
    axis: bool = True
    smooth: bool = True  # whether a finite difference is its derivative
    scale: str = "result"  # of the error: "result" or "logits", whose rounding moves the result
    reduces: bool = False


UNIT = Option(0.0, 1.0, (0.0, 1.0, 0.5))
SMALL = Option(0.0, 0.9, (0.0,))
ALPHA = Option(1.05, 2.5, (1.0, 1.5, 2.0))
WARM = Option(0.05, 4.0, (1.0, 1e-3, 1e3))
CROSS_ENTROPY = {"label_smoothing": SMALL, "z_loss": SMALL}

TARGETS = [
    Target("logsumexp", reduces=True),
    Target("softmax"),
    Target("log_softmax"),
    Target("class_log_odds"),
    Target("entropy", reduces=True),
    Target("softmax_kl_divergence", ("logits",), reduces=True),
    Target("jensen_shannon_divergence", ("logits",), {"weight": UNIT}, reduces=True),
    Target("total_variation", ("logits",), smooth=False, reduces=True),
    Target(
        "softmax_cross_entropy_with_teacher_logits",
        ("logits",),
        {"temperature": WARM},
        reduces=True,
    ),
    Target("softmax_cross_entropy", ("targets",), CROSS_ENTROPY, reduces=True),
    Target("softmax_cross_entropy_with_integer_labels", ("labels",), CROSS_ENTROPY, reduces=True),
    Target(
        "softmax_focal_loss_with_integer_labels",
        ("labels",),
        {"gamma": Option(0.0, 4.0, (0.0, 0.5, 1.0, 2.0))},
        reduces=True,
    ),
    Target(
        "poly_loss_cross_entropy",
        ("targets",),
        {"epsilon": Option(-1.0, 3.0, (0.0, 2.0, -1.0))},
        reduces=True,
    ),
    Target("sparsemax", smooth=False),
    Target("entmax", (), {"alpha": ALPHA}, smooth=False),
    Target("entmax_loss", ("targets",), {"alpha": ALPHA}, reduces=True),
    Target("entmax_loss_with_integer_labels", ("labels",), {"alpha": ALPHA}, reduces=True),
    Target("apply_temperature", (), {"temperature": Option(0.05, 4.0, (0.0, 1.0, 1e-3, 1e3))}),
    Target("keep_top_k", (), {"k": Option(0, 0, (1, 2, 3, 7, 50))}),
    Target("keep_top_p", (), {"p": UNIT}),
    Target("keep_min_p", (), {"p": UNIT}),
    Target("keep_top_n_sigma", (), {"n": Option(0.0, 4.0, (0.0,))}),
    Target("keep_typical", (), {"mass": UNIT}),
    Target("keep_epsilon", (), {"epsilon": UNIT}),
    Target("keep_eta", (), {"epsilon": UNIT}),
    Target("aps_scores"),
    Target("sample"),
    Target("soft_cap", (), {"cap": Option(0.5, 50.0, (30.0,))}, masks=False, axis=False),
    Target(
        "penalize_repetition",
        ("counts",),
        {"penalty": Option(0.5, 2.0, (1.0,))},
        masks=False,
        axis=False,
        smooth=False,
    ),
    Target("adjust_prior", ("prior", "prior"), masks=False, axis=False),
    Target("sigmoid", masks=False, axis=False),
    Target("log_sigmoid", masks=False, axis=False),
    Target("softplus", masks=False, axis=False),
    Target(
        "sigmoid_binary_cross_entropy",
        ("shares",),
        {"label_smoothing": SMALL},
        masks=False,
        axis=False,
    ),
    Target(
        "sigmoid_focal_loss",
        ("shares",),
        {"gamma": Option(0.0, 4.0, (0.0, 0.5, 1.0, 2.0))},
        masks=False,
        axis=False,
    ),
]
BY_NAME = {target.name: target for target in TARGETS}


# Cases. Everything about one follows from the target's name and a number.


class Case(NamedTuple):
    target: Target
    seed: int
    mode: str
    dtype: str
    axis: int
    where: Any  # [N, K] or None
    logits: np.ndarray  # [N, K], of the dtype
    others: tuple[np.ndarray, ...]
    options: dict[str, Any]

    def __str__(self) -> str:
        masked = "" if self.where is None else " masked"
        options = "".join(f" {k}={v!r}" for k, v in self.options.items())
        what = f"{self.mode} {self.dtype}{list(self.logits.shape)} axis {self.axis}{masked}"
        return f"--only {self.target.name} --case {self.seed}  # {what}{options}"


def case_of(target: Target, seed: int, settings: tuple[Setting, ...] = SETTINGS) -> Case:
    rng = np.random.default_rng([zlib.crc32(target.name.encode()), seed])
    mode, dtype, num_classes, axis = settings[seed % len(settings)]
    shape = (N, num_classes)
    where = rng.random(shape) < rng.choice([0.3, 0.8, 0.95, 1.1]) if target.masks else None
    others = tuple(_other(kind, rng, shape, dtype) for kind in target.others)
    if target.name == "entmax_loss":
        others = (_of_kept(others[0], where),)
    options = {name: option.draw(rng) for name, option in target.options.items()}
    axis = axis if target.axis else 1
    logits = logits_of(rng, shape, dtype)
    return Case(target, seed, mode, dtype, axis, where, logits, others, options)


def logits_of(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Each row of a kind of its own."""
    rows = [_row(rng, shape[1]) for _ in range(shape[0])]
    with np.errstate(all="ignore"):
        return np.stack(rows).astype(jnp.dtype(dtype))


def _row(rng: np.random.Generator, size: int) -> np.ndarray:
    row = rng.choice([0.01, 1.0, 5.0, 30.0]) * rng.normal(size=size)
    kind = rng.integers(10)
    at, other = rng.integers(size, size=2)
    if kind == 0:
        row = np.round(row)  # ties
    elif kind == 1:
        row = np.round(row) + rng.choice([64.0, 1e4, 1e7, -1e7])
    elif kind == 2:
        row = row * rng.choice([1e36, 1e-30, 1e-3])
    elif kind == 3:
        row[at] = -INF
        row[other] = rng.choice([-INF, 0.0])
    elif kind == 4:
        row[at] = rng.choice([INF, NAN, 1e38, -1e38, -1e9])
    elif kind == 5:
        row[at], row[other] = rng.choice([INF, 1e38, 3e38]), rng.choice([INF, -3e38, 1e38])
    elif kind == 6:
        row[:] = rng.choice([0.0, -INF, 7.0, -0.0])
    return row


def _other(kind: str, rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if kind == "logits":
        return logits_of(rng, shape, dtype)
    if kind == "labels":
        labels = rng.integers(shape[1], size=shape[:1])
        bad = rng.random(shape[:1]) < 0.1
        return np.where(bad, rng.choice([-1, -100, shape[1]], size=shape[:1]), labels).astype("i4")
    if kind == "targets":
        hot = np.eye(shape[1])[rng.integers(shape[1], size=shape[0])]
        soft = rng.multinomial(16, np.full(shape[1], 1 / shape[1]), size=shape[0]) / 16
        return np.where(rng.random([shape[0], 1]) < 0.5, hot, soft).astype(np.float32)
    if kind == "counts":
        return rng.integers(3, size=shape).astype(np.int32)
    if kind == "shares":
        return rng.choice([0.0, 1.0, 0.25], size=shape).astype(np.float32)
    return rng.uniform(0.1, 2.0, shape).astype(np.float32)  # prior


def _of_kept(targets: np.ndarray, where: Any) -> np.ndarray:
    """Targets that sum to 1 over the classes that count: the first of them takes what is lost."""
    kept = np.where(where, targets, 0.0)
    first = np.arange(targets.shape[1]) == np.argmax(where, axis=1)[:, None]
    return (kept + first * (1 - kept.sum(axis=1, keepdims=True))).astype(np.float32)


# Running one.


def function(name: str, axis: int, **more: Any) -> Callable[..., Any]:
    """Of logits, the mask, other arrays and options."""
    target = BY_NAME[name]

    def fn(z: Any, where: Any, others: Any, options: Any) -> Any:
        options = {**options, **more}
        if target.axis:
            options["axis"] = axis
        if target.masks:
            options["where"] = where
        key = [jax.random.key(0)] if name == "sample" else []
        return getattr(jl, name)(*key, z, *others, **options)

    return fn


@functools.cache
def program(name: str, mode: str, axis: int) -> Any:
    return in_mode(function(name, axis), mode)


def in_mode(fn: Callable[..., Any], mode: str) -> Any:
    """Of logits, a direction, and what else ``fn`` takes: its result, or a derivative."""

    def values(z: Any, _: Any, *rest: Any) -> Any:
        return fn(z, *rest)

    def along(z: Any, direction: Any, *rest: Any) -> Any:
        """Derivatives of each result along a direction of the logits."""
        return jax.jvp(lambda z: fn(z, *rest), [z], [direction])[1]

    def gradient(z: Any, weights: Any, *rest: Any) -> Any:
        return jax.vjp(lambda z: fn(z, *rest), z)[1](weights)[0]

    if mode == "eager":
        return values
    if mode == "vmap":
        # Over a leading dimension of one, which is added to the logits alone.
        return jax.jit(lambda z, d, *rest: jax.vmap(lambda z: values(z, d, *rest))(z[None])[0])
    return jax.jit({"jit": values, "jvp": along, "grad": gradient}[mode])


def run(case: Case, fn: Any) -> tuple[Any, Any]:
    """What is given and what is wanted, both with rows first."""
    target = case.target

    def turned(x: Any) -> Any:
        return x.T if x is not None and case.axis == 0 and np.ndim(x) == 2 else x

    others = tuple(map(turned, case.others))
    rng = np.random.default_rng(case.seed)
    direction = rng.choice([-1.0, 0.5, 1.0], size=case.logits.shape)
    oracle = functools.partial(of_oracle, case)
    rest = (turned(case.where), others, case.options)
    if case.mode in ("eager", "jit", "vmap"):
        got = fn(turned(case.logits), None, *rest)
        return _rows(got, case), oracle(case.logits.astype(float))
    if case.mode == "jvp":
        tangent = direction.astype(case.logits.dtype)
        got = _rows(fn(turned(case.logits), turned(tangent), *rest), case)
        return got, difference(oracle, case.logits.astype(float), direction)
    result = oracle(case.logits.astype(float))
    wide = "float64" if case.dtype == "float64" else "float32"
    dtype = wide if target.reduces or target.name in WIDE else case.dtype
    weights = rng.choice([-1.0, 0.5, 1.0], size=result.shape)
    got = _rows(fn(turned(case.logits), turned(weights.astype(jnp.dtype(dtype))), *rest), case)
    # One number a row: along the direction, which the caller compares the gradient in.
    of_rows = (weights * difference(oracle, case.logits.astype(float), direction)).reshape(N, -1)
    return np.sum(got * direction, axis=1), np.sum(of_rows, axis=1)


WIDE = ("aps_scores", "sigmoid_binary_cross_entropy", "sigmoid_focal_loss")


def _rows(got: Any, case: Case) -> np.ndarray:
    got = np.asarray(got).astype(float)
    return got.T if case.axis == 0 and got.ndim == 2 else got


def of_oracle(case: Case, z: np.ndarray) -> np.ndarray:
    if case.target.name == "sample":
        return z  # see ``problem``
    mask = {} if case.where is None else {"where": case.where}
    fn = getattr(references, case.target.name)
    others = (x if x.dtype.kind == "i" else x.astype(float) for x in case.others)
    return np.asarray(fn(z, *others, **mask, **case.options), float)


def difference(fn: Callable[[np.ndarray], np.ndarray], z: Any, direction: Any) -> np.ndarray:
    """The derivative along a direction, by central differences of fourth order."""
    with np.errstate(all="ignore"):
        h = 1e-3
        far = fn(z + 2 * h * direction) - fn(z - 2 * h * direction)
        near = fn(z + h * direction) - fn(z - h * direction)
        return (8 * near - far) / (12 * h)


# Judging one.

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}


def problem(case: Case, fn: Any = None) -> str | None:
    """What is wrong with a case, or None; ``fn`` is its program."""
    fn = fn or program(case.target.name, case.mode, case.axis)
    if case.target.name == "sample":
        return _bad_draw(case, fn)
    if case.mode in ("jvp", "grad"):
        return _bad_derivative(case, fn)
    got, want = run(case, fn)
    return _bad_value(case, got, want)


def _bad_value(case: Case, got: np.ndarray, want: np.ndarray) -> str | None:
    if got.shape != want.shape:
        return f"shape {got.shape}, not {want.shape}"
    keep = near_an_edge(case, got, want)
    with np.errstate(all="ignore"):
        got, want = _overflowed(got, case), _overflowed(want, case)
        size = sensitivity(case)
        if case.target.name == "softmax_cross_entropy_with_teacher_logits":
            size = size * (1 + abs(want))  # the teacher's probabilities times the student's gaps
        size = size.reshape(-1, *[1] * (want.ndim - 1))
        allowed = tolerance(case, want) + size
        wrong = ~((abs(got - want) <= allowed) | (got == want) | (np.isnan(got) & np.isnan(want)))
    wrong &= ~keep
    if not wrong.any():
        return None
    at = tuple(int(i[0]) for i in np.nonzero(wrong))
    return f"{got[at]!r}, not {want[at]!r} at {at}, row {case.logits[at[0]].tolist()[:8]}"


def tolerance(case: Case, want: np.ndarray) -> np.ndarray:
    wide = EPS["float64" if case.dtype == "float64" else "float32"]
    if case.target.name.startswith(("entmax", "sparsemax")):
        wide = max(wide, 2.0**-40) if case.dtype == "float64" else 4 * wide
    narrow = 0 if case.target.reduces else EPS[case.dtype]
    return 1e-37 + 64 * wide * (1 + abs(want)) + narrow * abs(want)


def sensitivity(case: Case) -> np.ndarray:
    """[N]: how far the rounding of gaps between logits moves a result."""
    wide = EPS["float64" if case.dtype == "float64" else "float32"]
    sizes = [np.where(np.isfinite(x), abs(x), 0.0).max(axis=1) for x in _all_logits(case)]
    temperature = case.options.get("temperature", 1.0)
    scale = max(1.0, 1 / temperature if temperature > 0 else 1.0, temperature**2)
    return 16 * wide * scale * sum(sizes)


def _all_logits(case: Case) -> Iterator[np.ndarray]:
    yield case.logits.astype(float)
    for kind, x in zip(case.target.others, case.others, strict=True):
        if kind == "logits":
            yield x.astype(float)


def _overflowed(x: np.ndarray, case: Case) -> np.ndarray:
    """Beyond the largest number of the result's dtype is infinity."""
    dtype = "float32" if case.target.reduces and case.dtype != "float64" else case.dtype
    largest = float(jnp.finfo(dtype).max)
    x = np.where(x > largest * (1 - EPS[case.dtype]), INF, x)
    return np.where(x < -largest * (1 - EPS[case.dtype]), -INF, x)


def near_an_edge(case: Case, got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Where either of two results will do, such as a threshold as near as rounding."""
    none = np.zeros(want.shape, bool)
    if case.target.name == "apply_temperature":  # which then shifts the row
        with np.errstate(all="ignore"):
            size = abs(want).max(axis=1, keepdims=True, where=np.isfinite(want), initial=0.0)
        return none | (size > float(jnp.finfo(case.dtype).max))
    (name,) = case.options if case.target.name.startswith("keep_") else (None,)
    if name in (None, "k"):
        return none
    p = case.options[name]
    mask = {} if case.where is None else {"where": case.where}
    fn = getattr(references, case.target.name)
    step = max(1e-5, 4 * float(np.max(sensitivity(case), initial=0.0)))
    # Beyond 1 there is no share of the mass, but there is a higher bar.
    most = np.inf if case.target.name == "keep_eta" else 1.0
    nearby = (min(max(p * (1 + s) + s * 1e-6, 0.0), most) for s in (-step, step))
    sets = [np.isneginf(fn(case.logits.astype(float), **mask, **{name: q})) for q in nearby]
    differs = (sets[0] != sets[1]) | (sets[0] != np.isneginf(want)) | (sets[1] != np.isneginf(want))
    if case.target.name == "keep_typical":  # two distances may be as near
        differs |= (np.isneginf(got) != np.isneginf(want)).any(axis=1, keepdims=True) & (
            sensitivity(case)[:, None] > 1e-4
        )
    return differs


def _bad_derivative(case: Case, fn: Any) -> str | None:
    """Against differences where those are good, and finite where the value is."""
    got, want = run(case, fn)
    value = of_oracle(case, case.logits.astype(float)).reshape(N, -1)
    settled = np.isfinite(_overflowed(value, case)).all(axis=1) & np.all(
        [np.isfinite(x).all(axis=1) for x in _all_logits(case)], axis=0
    )
    flat = got.reshape(N, -1)
    bad = settled & ~np.isfinite(flat).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        found = flat[row].tolist()[:8]
        return f"derivative {found} of a finite value, row {case.logits[row].tolist()[:8]}"
    small = np.all([abs(x).max(axis=1) < 50 for x in _all_logits(case)], axis=0)
    if not case.target.smooth or case.options.get("temperature", 1.0) < 0.02:
        return None
    if case.target.name.startswith(("keep_", "aps")) or case.options.get("gamma", 2) < 2:
        return None
    slack = 5e-3 if case.target.name.startswith(("entmax", "sparsemax")) else 1e-4
    size = np.max(abs(want.reshape(N, -1)), axis=1)
    rounding = {"bfloat16": 0.1, "float16": 0.02}.get(case.dtype, 0.0)
    scale = max(1.0, 1 / case.options.get("temperature", 1.0))
    allowed = (slack + rounding) * (1 + size) * scale
    wrong = settled & small & ~(abs(flat - want.reshape(N, -1)).max(axis=1) <= allowed)
    if not wrong.any():
        return None
    row = int(np.argmax(wrong))
    return (
        f"derivative {flat[row].tolist()[:4]}, not {want.reshape(N, -1)[row].tolist()[:4]}, "
        f"row {case.logits[row].tolist()[:8]}"
    )


def _bad_draw(case: Case, fn: Any) -> str | None:
    if case.mode in ("jvp", "grad"):
        return None
    got, _ = run(case, fn)
    z = references.masked(case.logits, case.where)
    p = references.softmax(case.logits, where=case.where)
    possible = np.isfinite(p).all(axis=1) & (z.max(axis=1) > -INF)
    for row, (label, may) in enumerate(zip(got.astype(int), possible, strict=True)):
        if may and not (0 <= label < z.shape[1] and z[row, label] > -INF):
            return f"drew {label} from row {z[row].tolist()[:8]}"
        if not may and label != -1:
            return f"drew {label}, not -1, from row {z[row].tolist()[:8]}"
    return None


def check(name: str, seed: int) -> list[str]:
    """What is wrong with one case, in a line that runs it again."""
    return checked(case_of(BY_NAME[name], seed))


def checked(case: Case, fn: Any = None) -> list[str]:
    with jax.enable_x64(case.dtype == "float64"), np.errstate(all="ignore"):
        try:
            found = problem(case, fn)
        except Exception as error:
            found = f"{type(error).__name__}: {error}".splitlines()[0]
    return [] if found is None else [f"{case}: {found}"]
