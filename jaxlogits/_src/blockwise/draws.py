"""Random numbers that a function of rows draws, and whether each row has a key of its own."""

from __future__ import annotations

from typing import Any

from jax.extend.core import Literal

# Operations that make random numbers, with how many of their first arguments are the key.
DRAWS = {
    "random_bits": 1,
    "random_gamma": 1,
    "rng_bit_generator": 1,
    "rng_uniform": 0,
    "threefry2x32": 4,  # and what it counts with
}

_ROW, _DRAWN = 1, 2  # what a value depends on: its row, numbers that aren't the row's own


def draws_without_rows(jaxpr: Any, num_shared: int, num_rows: int) -> bool:
    """Whether results hang on random numbers for each row, drawn with a key that no row has.

    The first ``num_shared`` arguments are the same for all rows. What has an entry for each row is
    known from a dimension that ``num_rows`` divides, a number that divides no other.
    """
    given = [0 if i < num_shared else _ROW for i in range(len(jaxpr.invars))]
    return any(mark & _DRAWN for mark in _flow(jaxpr, given, num_rows))


def _flow(jaxpr: Any, given: list[int], num_rows: int) -> list[int]:
    """What each result depends on."""
    marks = dict(zip(jaxpr.invars, given, strict=True))

    def read(x: Any) -> int:
        return 0 if isinstance(x, Literal) else marks.get(x, 0)

    for eqn in jaxpr.eqns:
        results = _through(eqn, list(map(read, eqn.invars)), num_rows)
        marks.update(zip(eqn.outvars, results, strict=True))
    return list(map(read, jaxpr.outvars))


def _through(eqn: Any, given: list[int], num_rows: int) -> list[int]:
    """What the results of an operation depend on."""
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        body = _open(params["jaxpr"])
        end = _same_rank(eqn.invars, body.invars)  # what is scanned has a dimension more
        first = end - _same_rank(eqn.outvars, body.outvars)
        return _loop(body, given, first, end, num_rows)
    if name == "while":
        consts = params["cond_nconsts"], params["body_nconsts"]
        given = given[consts[0] :]
        return _loop(_open(params["body_jaxpr"]), given, consts[1], len(given), num_rows)
    if name == "cond":
        branches = [_flow(_open(b), given[1:], num_rows) for b in params["branches"]]
        return [_any([given[0], *marks]) for marks in zip(*branches, strict=True)]
    every = _any(given)
    values = [v for p in params.values() for v in (p if isinstance(p, tuple | list) else [p])]
    for inner in (_open(v) for v in values if hasattr(v, "eqns")):
        known = len(inner.invars) == len(given)
        found = _flow(inner, given if known else [every] * len(inner.invars), num_rows)
        return found if len(found) == len(eqn.outvars) else [_any(found)] * len(eqn.outvars)
    if name in DRAWS and not _any(given[: DRAWS[name]]) & _ROW:
        shapes = [x.aval.shape for x in eqn.outvars]
        if any(d and d % num_rows == 0 for shape in shapes for d in shape):
            every |= _DRAWN
    return [every] * len(eqn.outvars)


def _loop(body: Any, given: list[int], first: int, end: int, num_rows: int) -> list[int]:
    """A loop whose arguments from ``first`` to ``end`` are what it carries."""
    while True:
        found = _flow(body, given, num_rows)
        carried = [a | b for a, b in zip(given[first:end], found, strict=False)]
        if carried == given[first:end]:
            return found
        given = [*given[:first], *carried, *given[end:]]


def _same_rank(outer: Any, inner: Any) -> int:
    """How many variables at the start have the same rank in a loop and in its body."""
    pairs = zip(outer, inner, strict=True)
    differ = [i for i, (a, b) in enumerate(pairs) if len(a.aval.shape) != len(b.aval.shape)]
    return differ[0] if differ else len(outer)


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _any(marks: list[int]) -> int:
    union = 0
    for mark in marks:
        union |= mark
    return union
