"""What ``fuzz.py`` draws of linear heads, recorded classes, two models, and options of rows.

python tests/fuzz.py --only linear_top_k --case 1234567
"""

import functools
from collections.abc import Callable
from typing import Any

import fuzz_calls
import jax.numpy as jnp
import numpy as np
import references
from fuzz_calls import EPS, Array, Call, Draw

import jaxlogits as jl
from jaxlogits._src.blockwise import tiles
from jaxlogits._src.decoding import speculative

INF, NAN = np.inf, np.nan
N, D = 32, 4
Random = np.random.Generator


# What is drawn.


def cast(x: Any, dtype: str) -> Array:
    return np.asarray(x, float).astype(jnp.dtype(dtype))


def floats(rng: Random, shape: tuple[int, ...], dtype: str) -> Array:
    """Rows of sizes of their own; some of integers, whose products are exact and tie."""
    scale = rng.choice([0.01, 1.0, 1.0, 5.0], size=(*shape[:-1], 1))
    x = scale * rng.normal(size=shape)
    return cast(np.where(rng.random((*shape[:-1], 1)) < 0.2, np.round(x), x), dtype)


def logits(rng: Random, num_classes: int, dtype: str) -> Array:
    """[N, K], some with removed classes, at large offsets, all alike, or a NaN."""
    z = floats(rng, (N, num_classes), dtype).astype(float)
    kind = rng.integers(10, size=(N, 1))
    at = np.arange(num_classes) == rng.integers(num_classes, size=(N, 1))
    z = np.where((kind == 0) & ~at & (rng.random(z.shape) < 0.5), -INF, z)
    z = np.where(kind == 1, np.round(z) + rng.choice([64.0, 1e4, -1e4], size=(N, 1)), z)
    z = np.where((kind == 2) & at, rng.choice([NAN, INF, -1e30, 1e30], size=(N, 1)), z)
    return cast(np.where(kind == 3, 1.0, z), dtype)


def labels(rng: Random, num_classes: int) -> Array:
    """Of which some are no class."""
    given = rng.integers(num_classes, size=N)
    bad = rng.choice([-1, -100, num_classes], size=N)
    return np.where(rng.random(N) < 0.1, bad, given).astype(np.int32)


def recorded(rng: Random, given: Array, num_classes: int, size: int) -> Array:
    """[N, n] ids with padding, some twice, mostly with the label, seldom with what is no class."""
    ids = rng.integers(-1, num_classes, size=(N, size))
    has_label = rng.random(N) < 0.8
    ids[:, 0] = np.where(has_label, np.clip(given, 0, num_classes - 1), ids[:, 0])
    ids[rng.random(N) < 0.05, -1] = rng.choice([-2, num_classes])
    return rng.permuted(ids, axis=1).astype(np.int32)


def option(rng: Random, fixed: Random, low: float, high: float, dtype: str) -> Any:
    """Nothing, a number, or one for each row; in float32, as a caller has them."""
    kind = fixed.integers(3)
    wide = "float64" if dtype == "float64" else "float32"
    return None if kind == 0 else cast(rng.uniform(low, high, size=[(), (N,)][kind - 1]), wide)


def given(**args: Any) -> dict[str, Any]:
    return {name: x for name, x in args.items() if x is not None}


def as_column(x: Any) -> Any:
    return x[:, None] if np.ndim(x) else x


# Heads.


def layer(rng: Random, fixed: Random, dtype: str, suffix: str = "", k: int = 0) -> dict[str, Any]:
    """hidden, kernel and, in some settings, a bias with classes that can't be."""
    num_classes = k or int(fixed.choice([5, 20, 1]))
    bias = floats(rng, (1, num_classes), dtype)[0]
    bias[(rng.random(num_classes) < 0.1) & (np.arange(num_classes) > 0)] = -INF
    return given(
        **{
            f"hidden{suffix}": floats(rng, (N, D), dtype),
            f"kernel{suffix}": floats(rng, (D, num_classes), dtype),
            f"bias{suffix}": cast(bias, dtype) if fixed.random() < 0.5 else None,
        }
    )


def scaled(rng: Random, fixed: Random, dtype: str) -> dict[str, Any]:
    """What all heads' logits go through."""
    cap = option(rng, fixed, 0.5, 30.0, dtype)
    return given(
        soft_cap=cap if np.ndim(cap) == 0 else None,
        temperature=option(rng, fixed, 0.3, 3.0, dtype),
    )


def chosen(rng: Random, fixed: Random, num_classes: int) -> dict[str, Any]:
    """Which rows count and which classes exist; the first of them does."""
    exists = (rng.random(num_classes) < 0.7) | (np.arange(num_classes) == 0)
    return given(
        where=rng.random(N) < 0.7 if fixed.random() < 0.5 else None,
        class_where=exists if fixed.random() < 0.5 else None,
    )


def spoil(rng: Random, args: dict[str, Any], others: dict[str, Any]) -> None:
    """Rows that don't count hold anything."""
    if "where" not in others:
        return
    off = ~others["where"] & (rng.random(N) < 0.5)
    for name in ("hidden", "hidden_p", "hidden_q"):
        if name in args:
            args[name][off] = NAN
    if "labels" in others:
        others["labels"][off] = -100
    if "kept" in others:
        others["kept"][off] = -7
    if np.ndim(args.get("temperature")):
        args["temperature"][off] = 1e30


def exact_logits(args: dict[str, Any], suffix: str = "") -> Array:
    z = args[f"hidden{suffix}"] @ args[f"kernel{suffix}"]
    z = z + args.get(f"bias{suffix}", 0.0)
    if "soft_cap" in args:
        z = references.soft_cap(z, cap=args["soft_cap"])
    return z / as_column(args.get("temperature", 1.0))


def sizes(args: dict[str, Any], suffix: str = "") -> tuple[Array, Array]:
    """[N]: how large the terms of logits are, and how fast the logits move."""
    hidden, kernel = (abs(args[f"{x}{suffix}"].astype(float)) for x in ("hidden", "kernel"))
    bias = abs(args.get(f"bias{suffix}", np.zeros(1)).astype(float))
    bias = np.where(np.isfinite(bias), bias, 0.0)
    warmth = np.asarray(args.get("temperature", 1.0), float)
    hidden = np.where(np.isnan(hidden), 0.0, hidden)
    size = np.max(hidden @ kernel + bias, axis=1) / abs(warmth)
    slope = hidden.sum(axis=1) + kernel.sum(axis=0).max() + 1.0
    return size, np.max([slope, size], axis=0) * (1 + 1 / abs(warmth)) ** 2


def head(
    rng: Random,
    name: str,
    args: dict[str, Any],
    others: dict[str, Any],
    static: dict[str, Any],
    oracle: Callable[..., Any],
    **fields: Any,
) -> Call:
    """A call of a head; ``oracle`` is of logits and the other arguments."""
    spoil(rng, args, others)
    size, slope = sizes(args)

    def exact(**all_args: Any) -> Any:
        result = oracle(exact_logits(all_args), all_args)
        keep = as_column(all_args.get("where", True)) if result.ndim == 2 else others.get("where")
        return result if keep is None else np.where(keep, result, 0.0)

    fn = ours(name, tuple(static.items()))
    return Call(fn, args, others, exact, size, slope, is_head=True, **fields)


@functools.cache
def ours(name: str, static: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """The function of arrays by name, one object for all calls of a program."""
    return functools.partial(getattr(jl, name), **dict(static))


def block_size(fixed: Random) -> dict[str, Any]:
    return {"block_size": int(fixed.choice([5, 16]))} if fixed.random() < 0.7 else {}


def parts(fixed: Random) -> dict[str, Any]:
    """Blocks of rows, or tiles of classes."""
    return {"memory": "tiles"} if fixed.random() < 0.4 else block_size(fixed)


def narrow_tiles() -> None:
    """Tiles of 5 classes, so that small heads have several, the last of which overlaps."""
    tiles._TILE_BYTES, tiles._FEWEST_CLASSES, tiles._LANES = 0, 5, 1


def is_label(args: dict[str, Any], z: Array) -> Array:
    return (args["labels"] >= 0) & (args["labels"] < z.shape[1])


def log_probs_of(z: Array, args: dict[str, Any]) -> Array:
    """Of the labels, NaN where one is no class and -inf where it doesn't exist."""
    z_, here = references.masked(z, args.get("class_where")), is_label(args, z)
    log_p = references.log_softmax(z_)
    own = np.take_along_axis(log_p, np.where(here, args["labels"], 0)[:, None], axis=1)[:, 0]
    return np.where(here, own, NAN)


def cross_entropy(z: Array, args: dict[str, Any]) -> Array:
    """Of integer labels, with a smoothing for each row."""
    mask = args.get("class_where")
    losses = references.softmax_cross_entropy_with_integer_labels(
        z,
        args["labels"],
        where=None if mask is None else np.broadcast_to(mask, z.shape),
        label_smoothing=as_column(args.get("label_smoothing", 0.0)),
        class_weights=args.get("class_weights", 1.0),
        z_loss=args.get("z_loss", 0.0),
    )
    return np.where(is_label(args, z), losses, NAN)


def linear_softmax_cross_entropy(rng: Random, fixed: Random, dtype: str) -> Call:
    args = {**layer(rng, fixed, dtype), **scaled(rng, fixed, dtype)}
    num_classes = args["kernel"].shape[1]
    others = {"labels": labels(rng, num_classes), **chosen(rng, fixed, num_classes)}
    wide = "float64" if dtype == "float64" else "float32"
    z_loss = option(rng, fixed, 0.0, 0.5, dtype)
    args |= given(
        label_smoothing=option(rng, fixed, 0.0, 0.9, dtype),
        z_loss=z_loss if np.ndim(z_loss) == 0 else None,
        weights=cast(rng.uniform(0.5, 2, N), wide) if fixed.random() < 0.5 else None,
        class_weights=cast(rng.uniform(0.5, 2, num_classes), wide)
        if fixed.random() < 0.5
        else None,
    )

    def oracle(z: Array, args: dict[str, Any]) -> Array:
        return cross_entropy(z, args) * args.get("weights", 1.0)

    static = {"reduction": "none", **parts(fixed)}
    call = head(rng, "linear_softmax_cross_entropy", args, others, static, oracle)
    if fixed.random() < 0.6:
        return call
    reduction = str(fixed.choice(["mean", "sum"]))

    def reduced(**args: Any) -> Any:
        losses, keep = call.oracle(**args), args.get("where", np.ones(N, bool))
        weights = np.where(keep, args.get("weights", np.ones(N)), 0.0)
        return losses.sum() / (weights.sum() if reduction == "mean" else 1.0)

    static |= {"reduction": reduction}
    # A label that is no class is NaN of all: seldom, so that something is seen of the others.
    if rng.random() < 0.9:
        others["labels"] = np.clip(others["labels"], 0, num_classes - 1)
    fn = ours("linear_softmax_cross_entropy", tuple(static.items()))
    return call._replace(fn=fn, oracle=reduced, size=N * call.size)


def linear_log_probs(rng: Random, fixed: Random, dtype: str) -> Call:
    args = {**layer(rng, fixed, dtype), **scaled(rng, fixed, dtype)}
    num_classes = args["kernel"].shape[1]
    others = {"labels": labels(rng, num_classes), **chosen(rng, fixed, num_classes)}
    return head(rng, "linear_log_probs", args, others, parts(fixed), log_probs_of)


def linear_log_probs_of_kept(rng: Random, fixed: Random, dtype: str) -> Call:
    args = {**layer(rng, fixed, dtype), **scaled(rng, fixed, dtype)}
    num_classes = args["kernel"].shape[1]
    others = {"labels": labels(rng, num_classes), **chosen(rng, fixed, num_classes)}
    others["kept"] = recorded(rng, others["labels"], num_classes, int(fixed.choice([1, 4, 30])))
    return head(rng, "linear_log_probs", args, others, block_size(fixed), among_kept)


def among_kept(z: Array, args: dict[str, Any], where: Any = None) -> Array:
    ids, where = args["kept"], args.get("class_where", where)
    keep = np.any(ids[:, :, None] == np.arange(z.shape[1]), axis=1)
    keep = keep if where is None else keep & where
    bad = ~is_label(args, z) | np.any((ids < -1) | (ids >= z.shape[1]), axis=1)
    log_p = references.log_softmax(z, where=keep)
    index = np.where(bad, 0, args["labels"])[:, None]
    own = np.take_along_axis(log_p, index, axis=1)[:, 0]
    # A row is NaN by what it has kept, whether that is the label or not.
    spoiled = np.any(keep & np.isnan(z), axis=1)
    hit = np.take_along_axis(keep, index, axis=1)[:, 0]
    return np.where(bad | spoiled, NAN, np.where(hit, own, -INF))


def linear_log_probs_and_entropy(rng: Random, fixed: Random, dtype: str) -> Call:
    args = {**layer(rng, fixed, dtype), **scaled(rng, fixed, dtype)}
    num_classes = args["kernel"].shape[1]
    others = {"labels": labels(rng, num_classes), **chosen(rng, fixed, num_classes)}

    def oracle(z: Array, args: dict[str, Any]) -> Array:
        mask = args.get("class_where")
        entropies = references.entropy(z, where=None if mask is None else mask[None])
        return np.stack([log_probs_of(z, args), entropies], axis=1)

    call = head(rng, "linear_log_probs_and_entropy", args, others, block_size(fixed), oracle)
    return call._replace(fn=_stacked(call.fn))


@functools.cache
def _stacked(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **args: jnp.stack(fn(**args), axis=-1)


def linear_top_k(rng: Random, fixed: Random, dtype: str) -> Call:
    args = {**layer(rng, fixed, dtype), **scaled(rng, fixed, dtype)}
    num_classes = args["kernel"].shape[1]
    others = chosen(rng, fixed, num_classes)
    k = int(fixed.integers(1, num_classes + 1))
    spoil(rng, args, others)
    exact = {name: np.asarray(x, float) for name, x in args.items()}

    def log_softmax(z: Array, args: dict[str, Any]) -> Array:
        mask = args.get("class_where")
        return references.log_softmax(z, where=None if mask is None else mask[None])

    ranked = np.sort(log_softmax(exact_logits(exact), others), axis=1)[:, ::-1]
    order = np.argsort(-log_softmax(exact_logits(exact), others), axis=1, kind="stable")[:, :k]

    def oracle(z: Array, args: dict[str, Any]) -> Array:
        return np.take_along_axis(log_softmax(z, args), order, axis=1)

    def judge(result: Any) -> str | None:
        found, classes = (np.asarray(x) for x in result)
        some = classes >= 0
        wide = log_softmax(exact_logits(exact), others)
        own = np.take_along_axis(wide, np.maximum(classes, 0), axis=1)
        keep = others.get("where", np.ones(N, bool))[:, None]
        allowed = 1e-5 + 64 * EPS["float32"] * (abs(own) + sizes(args)[0][:, None])
        if np.any(some != (keep & (found > -INF))):
            return "a class where there is none, or none where there is one"
        if np.any(some & ~(abs(own - found) <= allowed)):
            return "a class of another log probability"
        twice = [len(set(row[row >= 0])) < np.sum(row >= 0) for row in classes]
        return "a class twice" if any(twice) else None

    gaps = np.diff(ranked[:, : k + 1], axis=1) if num_classes > 1 else -np.ones((N, 1))
    call = head(rng, "linear_top_k", args, others, {"k": k, **block_size(fixed)}, oracle)
    apart = np.where(np.isnan(gaps), 0.0, -gaps).min(axis=1, initial=1.0) > 0.02
    return call._replace(judge=judge, is_smooth=apart)


def linear_softmax_kl_divergence(rng: Random, fixed: Random, dtype: str) -> Call:
    args = layer(rng, fixed, dtype, "_p")
    num_classes = args["kernel_p"].shape[1]
    args |= layer(rng, fixed, dtype, "_q", num_classes)
    args |= scaled(rng, fixed, dtype)
    if rng.random() < 0.3:  # nearly the same
        for name in ("hidden", "kernel"):
            noise = 1 + 1e-3 * rng.normal(size=args[f"{name}_p"].shape)
            args[f"{name}_q"] = cast(args[f"{name}_p"].astype(float) * noise, dtype)
    others = chosen(rng, fixed, num_classes)
    spoil(rng, args, others)
    size, slope = (sum(x) for x in zip(sizes(args, "_p"), sizes(args, "_q"), strict=True))

    def oracle(**args: Any) -> Array:
        mask = args.get("class_where")
        p, q = exact_logits(args, "_p"), exact_logits(args, "_q")
        where = None if mask is None else mask[None]
        return np.where(
            args.get("where", True), references.softmax_kl_divergence(p, q, where=where), 0.0
        )

    static = {"reduction": "none", **block_size(fixed)}
    fn = ours("linear_softmax_kl_divergence", tuple(static.items()))
    return Call(fn, args, others, oracle, size, slope, is_head=True)


# Rows with options of their own.


def of_rows(
    rng: Random, fixed: Random, dtype: str
) -> tuple[dict[str, Any], dict[str, Any], Array, Array]:
    """Logits, a mask of classes in some settings, and their sizes."""
    z = logits(rng, int(fixed.choice([5, 20, 1])), dtype)
    others = {"where": rng.random(z.shape) < 0.8} if fixed.random() < 0.5 else {}
    size = np.where(np.isfinite(z), abs(z.astype(float)), 0.0).max(axis=1)
    return {"logits": z}, others, size, 4.0 + 0 * size


def kept_log_probs(rng: Random, fixed: Random, dtype: str) -> Call:
    args, others, size, slope = of_rows(rng, fixed, dtype)
    num_classes = args["logits"].shape[1]
    given = labels(rng, num_classes)
    kept = recorded(rng, given, num_classes, int(fixed.choice([1, 4, 30])))
    others |= {"labels": given, "kept": kept}

    def oracle(**args: Any) -> Array:
        where = args.get("where")
        result = among_kept(args["logits"], args, where)
        return result if where is None else np.where(where.any(axis=1), result, 0.0)

    return Call(jl.kept_log_probs, args, others, oracle, size, slope)


def cross_entropy_with_smoothing(rng: Random, fixed: Random, dtype: str) -> Call:
    return _of_labels(rng, fixed, dtype, "softmax_cross_entropy_with_integer_labels", {})


def focal_loss_with_weights(rng: Random, fixed: Random, dtype: str) -> Call:
    gamma = {"gamma": cast(rng.choice([0.0, 0.5, 1.0, 2.0, 3.5]), "float32")}
    return _of_labels(rng, fixed, dtype, "softmax_focal_loss_with_integer_labels", gamma)


def _of_labels(rng: Random, fixed: Random, dtype: str, name: str, more: dict[str, Any]) -> Call:
    args, others, size, slope = of_rows(rng, fixed, dtype)
    num_classes = args["logits"].shape[1]
    wide = "float64" if dtype == "float64" else "float32"
    weights = cast(rng.uniform(0.5, 2.0, num_classes), wide)
    args |= given(
        label_smoothing=option(rng, fixed, 0.05, 0.9, dtype),
        class_weights=weights if fixed.random() < 0.6 else None,
        **more,
    )
    others["labels"] = labels(rng, num_classes)
    fn = getattr(references, name)

    def oracle(**args: Any) -> Array:
        z, where = args.pop("logits"), args.pop("where", None)
        smoothing = args.pop("label_smoothing", 0.0)
        smoothing = smoothing if "gamma" in args else as_column(smoothing)
        here = is_label(args, z)
        args["labels"] = np.where(here, args["labels"], 0)
        result = fn(z, **args, where=where, label_smoothing=smoothing)
        empty = False if where is None else ~where.any(axis=1)
        return np.where(here | empty, result, NAN)

    # gamma = 0 is the end of its range, and below 2 the loss of a sure class has a kink.
    is_smooth = float(more.get("gamma", 2.0)) >= 2
    return Call(getattr(jl, name), args, others, oracle, size, slope, is_smooth=is_smooth)


def keep_top_n_sigma(rng: Random, fixed: Random, dtype: str) -> Call:
    args, others, size, slope = of_rows(rng, fixed, dtype)
    n = cast(rng.choice([0.0, 0.5, 1.0, 2.5, INF], size=N), "float32")
    z, mask = args["logits"].astype(float), others.get("where")
    step = 1e-5 + 64 * EPS["float32"] * size

    def oracle(logits: Array, **_: Any) -> Array:
        return references.keep_top_n_sigma(logits, n=n[:, None], where=mask)

    near = [references.keep_top_n_sigma(z, n=(n + s)[:, None], where=mask) for s in (-step, step)]
    at_an_edge = np.any(np.isneginf(near[0]) != np.isneginf(near[1]), axis=1)
    # Rows with a class at the bar stand as they are given, of one class that nobody can remove.
    args["logits"] = args["logits"].copy()
    args["logits"][at_an_edge] = 0.0
    return Call(_top_n_sigma, args, {**others, "n": n}, oracle, size, slope)


def _top_n_sigma(logits: Any, n: Any, where: Any = None) -> Any:
    return jl.keep_top_n_sigma(logits, n, where=where)


# Numbers.


def numbers(rng: Random, dtype: str) -> Array:
    x = rng.choice([1e-3, 1.0, 10.0, 100.0], size=(N, 1)) * rng.normal(size=(N, 8))
    of_note = rng.choice([0.0, -0.0, INF, -INF, NAN, 1e30, -1e30], size=x.shape)
    return cast(np.where(rng.random(x.shape) < 0.05, of_note, x), dtype)


def sigmoid_entropy(rng: Random, fixed: Random, dtype: str) -> Call:
    del fixed
    args = {"logits": numbers(rng, dtype)}
    return _of_numbers("sigmoid_entropy", args, abs(args["logits"].astype(float)) < 50)


def sigmoid_kl_divergence(rng: Random, fixed: Random, dtype: str) -> Call:
    p, q = numbers(rng, dtype), numbers(rng, dtype)
    if fixed.random() < 0.5:
        q = cast(p.astype(float) * (1 + 1e-4 * rng.normal(size=p.shape)), dtype)
    small = (abs(p.astype(float)) < 50) & (abs(q.astype(float)) < 50)
    return _of_numbers("sigmoid_kl_divergence", {"logits_p": p, "logits_q": q}, small)


def logitexp(rng: Random, fixed: Random, dtype: str) -> Call:
    x = -abs(numbers(rng, dtype))
    if fixed.random() < 0.5:  # near log(1/2), where the result is 0
        x = cast(np.log(0.5) + x.astype(float) * 1e-3, dtype)
    good = (x.astype(float) > -50) & (x.astype(float) < -1e-2)
    call = _of_numbers("logitexp", {"log_probs": x}, good)
    return call._replace(has_infinite_slopes=True)


def _of_numbers(name: str, args: dict[str, Array], is_small: Array) -> Call:
    fn = getattr(references, name)
    size = np.zeros(N)
    smooth = is_small.all(axis=1)
    return Call(
        getattr(jl, name),
        args,
        {},
        lambda **a: fn(*a.values()),
        size,
        8.0 + size,
        is_smooth=smooth,
        is_relative=name == "sigmoid_entropy",  # the others' oracles cancel
    )


# Two models.


def speculative_probabilities(rng: Random, fixed: Random, dtype: str) -> Call:
    """How likely a draft of each place is rejected and by what it is replaced."""
    wide = "float64" if dtype == "float64" else "float32"
    num_classes = int(fixed.choice([5, 20]))
    p, q = (_possible(rng, num_classes, wide) for _ in range(2))
    size = rng.choice([1e-6, 1e-3, 1.0], size=(N, 1))
    near = cast(p.astype(float) + size * rng.normal(size=p.shape), wide)
    q = np.where(rng.random((N, 1)) < 0.6, near, q)
    warmth = cast(rng.choice([1.0, 0.5, 2.0]), wide)

    def oracle(p: Array, q: Array, temperature: float) -> Array:
        log_p, log_q = (references.log_softmax(z / temperature) for z in (p, q))
        # p - q by its own digits where the two are nearly equal.
        ratio = np.where(np.isneginf(log_q), -INF, log_q - np.where(np.isneginf(log_p), 0, log_p))
        missing = np.where(ratio < 0, np.exp(log_p) * -np.expm1(np.minimum(ratio, 0)), 0.0)
        return np.concatenate([missing, missing.sum(axis=1, keepdims=True)], axis=1)

    def judge(result: Any) -> str | None:
        got = np.asarray(result).astype(float)
        want = oracle(p.astype(float), q.astype(float), float(warmth))
        # float64 itself has 2^-50 of the total.
        allowed = 1e-5 * want[:, -1:] + 2.0**-50
        wrong = ~(abs(got - want) <= allowed)
        return f"{got[wrong][0]}, not {want[wrong][0]}" if wrong.any() else None

    scale = np.where(np.isfinite(p), abs(p), 0.0).astype(float).max(axis=1) / float(warmth)
    args = {"p": p, "q": q, "temperature": warmth}
    fields = {"is_smooth": np.zeros(N, bool), "judge": judge}
    return Call(_missing, args, {}, oracle, scale, scale, **fields)


def _possible(rng: Random, num_classes: int, dtype: str) -> Array:
    """Logits with a class at least that can be drawn."""
    z = 3 * rng.normal(size=(N, num_classes)) + rng.choice([0.0, 0.0, 1e4], size=(N, 1))
    removed = (rng.random(z.shape) < 0.2) & (np.arange(num_classes) > 0)
    return cast(np.where(removed & (rng.random((N, 1)) < 0.3), -INF, z), dtype)


def _missing(p: Any, q: Any, temperature: Any) -> Any:
    models = speculative._compare(jnp.concatenate([p, p[:1]]), q, jnp.asarray(temperature), None)
    missing = jnp.exp(models.missing)
    return jnp.concatenate([missing, missing.sum(axis=1, keepdims=True)], axis=1)


TARGETS: dict[str, Draw] = {
    draw.__name__: draw
    for draw in (
        linear_softmax_cross_entropy,
        linear_log_probs,
        linear_log_probs_of_kept,
        linear_log_probs_and_entropy,
        linear_top_k,
        linear_softmax_kl_divergence,
        kept_log_probs,
        cross_entropy_with_smoothing,
        focal_loss_with_weights,
        sigmoid_entropy,
        sigmoid_kl_divergence,
        logitexp,
        speculative_probabilities,
    )
}
TARGETS["keep_top_n_sigma_of_rows"] = keep_top_n_sigma


def check(name: str, seed: int) -> list[str]:
    """As ``fuzz.check``."""
    return fuzz_calls.check(TARGETS, name, seed)
