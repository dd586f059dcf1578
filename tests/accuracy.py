"""How accurate each function is: the one place that says it.

``BUDGETS[function][dtype]`` is the largest error of its values and of its derivatives by order, in
ulp of the exact result. The tests hold the functions to it, docs/accuracy.md shows it beside what
was measured, and the ``Accuracy:`` line of a docstring has to say the same:

    Accuracy: float32 1.1 ulp, derivatives 1.3 and 5.5; bfloat16 and float16 0.501 ulp. Or prose.

Clauses are separated by semicolons, up to the first full stop. A clause is one or more dtypes, the
error of the value and, where they are promised, those of the first and the second derivative
("derivative 5" for the first alone). An error that isn't in ulp of the result itself says of what:
"float32 3 ulp of max(1, |result|)".
"""

import re
from typing import NamedTuple


class Budget(NamedTuple):
    """The largest error of a function in ulp, by order of derivative."""

    value: float
    derivatives: tuple[float, ...] = ()
    of: str = "result"  # the number whose ulp is meant


_SIXTEEN_BITS = Budget(0.501, (0.501, 0.501))
_WHERE_EXACT = " where the gaps are exact"
_EXACT_GAPS = f"the result{_WHERE_EXACT}"

BUDGETS: dict[str, dict[str, Budget]] = {
    "logit": {
        "float32": Budget(1.1, (1.3, 5.5)),
        "float64": Budget(1.25, (1.3, 5.0)),
        "bfloat16": _SIXTEEN_BITS,
        "float16": _SIXTEEN_BITS,
    },
    "sigmoid": {
        "float32": Budget(1.5, (2.5, 5.5)),
        "float64": Budget(1.25, (2.2, 5.0)),
        "bfloat16": _SIXTEEN_BITS,
        "float16": _SIXTEEN_BITS,
    },
    "log_sigmoid": {
        "float32": Budget(1.1, (1.5, 2.5)),
        "float64": Budget(1.25, (1.25, 2.2)),
        "bfloat16": _SIXTEEN_BITS,
        "float16": _SIXTEEN_BITS,
    },
    "softplus": {
        "float32": Budget(1.1, (1.5, 2.5)),
        "float64": Budget(1.25, (1.25, 2.2)),
        "bfloat16": _SIXTEEN_BITS,
        "float16": _SIXTEEN_BITS,
    },
    "log1mexp": {
        "float32": Budget(1.35, (2.5, 5.5)),
        "float64": Budget(1.25, (2.2, 5.0)),
        "bfloat16": _SIXTEEN_BITS,
        "float16": _SIXTEEN_BITS,
    },
    "logitexp": {
        "float32": Budget(2.0, (2.5, 5.5)),
        "bfloat16": Budget(0.501),
        "float16": Budget(0.501),
    },
    # Rows and losses. The gaps between logits of test rows are exact in float32: the rounding of a
    # gap is no error of these functions. Derivatives are by the logits.
    "logsumexp": {"float32": Budget(3.0, of="max(1, |result|)")},
    "softmax": {"float32": Budget(5.0, (5.0,), _EXACT_GAPS)},
    "log_softmax": {"float32": Budget(5.0, (5.0,), _EXACT_GAPS)},
    "class_log_odds": {"float32": Budget(5.0, (5.0,), f"max(0.5, |result|){_WHERE_EXACT}")},
    "softmax_cross_entropy": {"float32": Budget(5.0, (5.0,), _EXACT_GAPS)},
    "softmax_cross_entropy_with_integer_labels": {"float32": Budget(5.0, (5.0,), _EXACT_GAPS)},
    "softmax_focal_loss_with_integer_labels": {"float32": Budget(8.0, (8.0,), _EXACT_GAPS)},
    "poly_loss_cross_entropy": {"float32": Budget(5.0, (5.0,), _EXACT_GAPS)},
    "sigmoid_binary_cross_entropy": {"float32": Budget(2.5, (4.0,))},
    "sigmoid_focal_loss": {"float32": Budget(4.0, (5.0,))},
}

# Third and fourth derivatives of the elementwise functions, relative to the result, in units of its
# dtype's epsilon, at points where no two terms cancel.
HIGHER_ORDERS = 4.0


def allowed(function: str, dtype: str, order: int = 0) -> float:
    """The budget of one function, dtype and order of derivative."""
    budget = BUDGETS[function][dtype]
    return (budget.value, *budget.derivatives)[order]


_NUMBER = r"\d+(?:\.\d+)?"
_CLAUSE = re.compile(
    rf"(?P<dtypes>\w+(?: and \w+)*) (?P<value>{_NUMBER}) ulp(?: of (?P<of>.+?))?"
    rf"(?:, derivatives? (?P<derivatives>{_NUMBER}(?: and {_NUMBER})*))?"
)


def stated(docstring: str) -> dict[str, Budget]:
    """What the ``Accuracy:`` line of a docstring says."""
    line = re.search(r"^ *Accuracy: (.*?)(?:\.\s|\.?$(?=\n *\w+:|\n\n|\Z))", docstring, re.M | re.S)
    if line is None:
        raise ValueError("no line begins with Accuracy:")
    found = {}
    for clause in re.sub(r"\s+", " ", line[1]).split("; "):
        match = _CLAUSE.fullmatch(clause)
        if match is None:
            raise ValueError(f"not a clause of tests/accuracy.py: {clause!r}")
        derivatives = tuple(map(float, re.findall(_NUMBER, match["derivatives"] or "")))
        budget = Budget(float(match["value"]), derivatives, match["of"] or "result")
        found |= dict.fromkeys(match["dtypes"].split(" and "), budget)
    return found
