"""Run with numpy what a test compiles or calls operation by operation, where XLA isn't tested.

``use_numpy(True)`` puts ``interpret.py`` in the place where jit has traced a program and would
compile it. A program that runs often, or works long, is compiled after all. So is whatever XLA or
JAX's runtime has a part in: meshes and placed arrays, effects, donated arguments, debug modes, and
operations that numpy lacks.

The place has no public name. In a JAX that has it elsewhere, and in older ones, everything is
compiled, as with ``pytest --compiled``: tests take longer and say the same.
"""

import importlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from interpret import CALLS, LOOPS, RULES, Steps, TooManySteps, evaluate, has_keys, is_running

# What compiling costs, in the time that numpy takes for an equation of few numbers.
_OF_A_PROGRAM, _OF_AN_EQUATION = 500, 50
# A call that numpy answers takes so much longer to begin than one of a compiled program.
_OF_A_CALL = 10

_OF_THE_RUNTIME = {"shard_map", "pure_callback", "custom_partitioning", "call_exported"}
_KNOWN = {*CALLS, *LOOPS, *RULES}

# With older ones, what is compiled is tested.
_IS_NEW = jax.__version_info__ >= (0, 12)

_jit: Any = importlib.import_module("jax._src.pjit")
_PLACE = "_pjit_call_impl_python"
_compiled: Callable[..., Any] | None = getattr(_jit, _PLACE, None) if _IS_NEW else None
_programs: Any = weakref.WeakKeyDictionary()
_met = Counter[str]()


def use_numpy(on: bool) -> None:
    """From here on, run programs with numpy, or compile them."""
    if _compiled is not None:
        setattr(_jit, _PLACE, _with_numpy if on else _compiled)


def programs_met() -> int | None:
    """How many programs were traced so far that XLA would have compiled, if numpy runs them."""
    is_on = _compiled is not None and getattr(_jit, _PLACE) is not _compiled
    return _met["programs"] if is_on else None


class _Again:
    """In the place of a profiler, it makes jit ask anew the next time."""

    def is_enabled(self) -> bool:
        return True

    def is_fdo_consumed(self) -> bool:
        return False


def _with_numpy(*args: Any, jaxpr: Any, **params: Any) -> Any:
    assert _compiled is not None
    steps = _programs.get(jaxpr)
    if steps is None:
        _met["programs"] += 1
        steps = _programs[jaxpr] = Steps(_worth(jaxpr))
    is_plain = _is_plain(params) and all(map(_is_unplaced, args))
    if steps.left > 0 and is_plain and not is_running():
        steps.left -= _OF_A_CALL
        # What a caller may write into later isn't shared.
        given = [x.copy() if isinstance(x, np.ndarray) else x for x in args]
        try:
            with jax.debug_nans(False), jax.debug_infs(False):  # which look at results alone
                results = evaluate(jaxpr, given, steps)
        except TooManySteps:
            pass  # and none are left
        else:
            if not any(map(_is_refused, results)):
                return list(map(_array, results, jaxpr.out_avals)), None, _Again(), []
    return _compiled(*args, jaxpr=jaxpr, **params)


def _worth(jaxpr: Any) -> float:
    """The steps that numpy may take for a program before compiling it is cheaper."""
    eqns = list(equations(jaxpr))
    on_host = all(map(_is_on_host, jaxpr.out_avals)) and all(map(_is_on_host, jaxpr.in_avals))
    if not on_host or jaxpr.effects or {eqn.primitive.name for eqn in eqns} & _OF_THE_RUNTIME:
        return 0.0
    if len(jaxpr.eqns) == 1 and jaxpr.eqns[0].primitive.name not in _KNOWN:
        return 0.0
    return _OF_A_PROGRAM + _OF_AN_EQUATION * len(eqns)


def equations(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from equations(inner)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns")


def _is_on_host(aval: Any) -> bool:
    """Whether numpy has arrays like this one: of weak type there are only numbers."""
    if has_keys(aval):
        return str(aval.dtype) == "key<fry>"
    return aval.dtype != jax.dtypes.float0 and not (aval.weak_type and aval.ndim)


def _is_unplaced(x: Any) -> bool:
    return not (isinstance(x, jax.Array) and x.committed)


def _is_plain(params: Any) -> bool:
    """A program for the first device."""
    if any(params["donated_invars"]) or params["compiler_options_kvs"]:
        return False
    shardings = (*params["in_shardings"], *params["out_shardings"])
    if not params["ctx_mesh"].empty or {type(s).__name__ for s in shardings} - {"UnspecifiedValue"}:
        return False
    return jax.config.jax_default_device is None


def _is_refused(result: Any) -> bool:
    """What a user who debugs isn't to see; the compiled program raises."""
    if not (jax.config.jax_debug_nans or jax.config.jax_debug_infs) or has_keys(result):
        return False
    if not jax.dtypes.issubdtype(result.dtype, np.inexact):
        return False
    is_nan, is_inf = np.isnan(result).any(), np.isinf(result).any()
    return (jax.config.jax_debug_nans and is_nan) or (jax.config.jax_debug_infs and is_inf)


def _array(result: Any, aval: Any) -> jax.Array:
    if isinstance(result, jax.Array):
        return result
    return jax.device_put(result.item() if aval.weak_type else result)
