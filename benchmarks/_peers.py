"""The libraries that comparison.py asks, each called in its own way, with NumPy arrays in and out.

Nothing is imported before it is called. Losses are sums over rows: ``loss(logits, labels)``, or
``loss(hidden, kernel, labels)`` of a linear head.
"""

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Liger's kernels are written in Triton, whose interpreter runs them on a CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
sys.argv = sys.argv[:1]  # which tokamax reads
logging.getLogger("absl").setLevel(logging.ERROR)  # it says that its blocks aren't tuned for a CPU

Arrays = tuple[np.ndarray, ...]
Function = Callable[..., Any]

# The packages of each library, the first of which has to be there.
PACKAGES = {
    "jaxlogits": ("jaxlogits",),
    "optax": ("optax",),
    "JAX": ("jax",),
    "torch": ("torch",),
    "tokamax": ("tokamax",),
    "jax-cce": ("jax-cce",),
    "CCE": ("cut-cross-entropy",),
    "Liger": ("liger-kernel", "triton"),
    "entmax": ("entmax",),
    "netcal": ("netcal",),
    "statsmodels": ("statsmodels",),
    "SciPy": ("scipy",),
}
OF_TORCH = ("torch", "CCE", "Liger", "entmax")


# Losses of logits.


def jaxlogits_loss(logits: Any, labels: Any) -> Any:
    import jaxlogits as jl

    return jl.softmax_cross_entropy_with_integer_labels(logits, labels).sum()


def optax_loss(logits: Any, labels: Any) -> Any:
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()


def jax_loss(logits: Any, labels: Any) -> Any:
    """How it is written with jax.nn alone."""
    return -jax.vmap(lambda z, y: jax.nn.log_softmax(z)[y])(logits, labels).sum()


def torch_loss(logits: Any, labels: Any) -> Any:
    from torch.nn import functional

    return functional.cross_entropy(logits, labels, reduction="sum")


def liger_loss(logits: Any, labels: Any) -> Any:
    from liger_kernel.transformers.functional import liger_cross_entropy

    return liger_cross_entropy(logits, labels, reduction="sum")


LOSSES = {
    "jaxlogits": jaxlogits_loss,
    "optax": optax_loss,
    "JAX": jax_loss,
    "torch": torch_loss,
    "Liger": liger_loss,
}


# Losses of a linear head.


def jaxlogits_head(hidden: Any, kernel: Any, labels: Any) -> Any:
    import jaxlogits as jl

    return jl.linear_softmax_cross_entropy(hidden, kernel, labels, reduction="sum")


def tokamax_head(hidden: Any, kernel: Any, labels: Any) -> Any:
    import tokamax

    return tokamax.linear_softmax_cross_entropy_loss(
        hidden, labels, kernel, reduction="sum", implementation="chunked_xla"
    )


def jax_cce_head(hidden: Any, kernel: Any, labels: Any) -> Any:
    import jax_cce  # has the mean alone

    return len(labels) * jax_cce.linear_cross_entropy(hidden, kernel.T, labels)


def torch_head(hidden: Any, kernel: Any, labels: Any) -> Any:
    from torch.nn import functional

    return functional.linear_cross_entropy(hidden, kernel.T, labels, reduction="sum")


def cce_head(hidden: Any, kernel: Any, labels: Any) -> Any:
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(hidden, kernel.T, labels, reduction="sum", impl="torch_compile")


def liger_head(hidden: Any, kernel: Any, labels: Any) -> Any:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(hidden, kernel.T, labels, reduction="sum")


HEADS = {
    "jaxlogits": jaxlogits_head,
    "tokamax": tokamax_head,
    "jax-cce": jax_cce_head,
    "torch": torch_head,
    "CCE": cce_head,
    "Liger": liger_head,
}


def arrays_of(library: str, arrays: Arrays, dtype: str = "float32") -> list[Any]:
    """The arrays as the library takes them: numbers in a dtype, classes in its integers."""
    if library not in OF_TORCH:
        return [jnp.asarray(x, dtype if x.dtype.kind == "f" else "int32") for x in arrays]
    import torch

    kinds = {"f": getattr(torch, dtype), "i": torch.int64}
    return [torch.tensor(x).to(kinds[x.dtype.kind]) for x in arrays]


def value_of(library: str, fn: Function, *arrays: np.ndarray, dtype: str = "float32") -> Any:
    """What it returns."""
    value = fn(*arrays_of(library, arrays, dtype))
    return np.asarray(value.double() if library in OF_TORCH else value, np.float64)


def gradient_of(library: str, fn: Function, *arrays: np.ndarray) -> Any:
    """The gradient in the first array, as each library's own training step takes it."""
    first, *rest = arrays_of(library, arrays)
    if library not in OF_TORCH:
        return np.asarray(jax.grad(fn)(first, *rest), np.float64)
    fn(first.requires_grad_(), *rest).sum().backward()
    return first.grad.numpy().astype(np.float64)


# Transforms of a loss in its first array; each gets a direction, too.


def _jax_transforms(f: Function, x: Any, v: Any) -> dict[str, Function]:
    slope = jax.grad(f)
    return {
        "jvp": lambda: jax.jvp(f, (x,), (v,))[1],
        "vmap of grad": lambda: jax.vmap(slope)(jnp.stack([x, x + v]))[0],
        "HVP, forward over reverse": lambda: jax.jvp(slope, (x,), (v,))[1],
        "HVP, reverse over reverse": lambda: jax.grad(lambda x: (slope(x) * v).sum())(x),
    }


def _torch_transforms(f: Function, x: Any, v: Any) -> dict[str, Function]:
    import torch

    def twice() -> Any:
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
        return torch.autograd.grad((slope * v).sum(), leaf)[0]

    slope = torch.func.grad(f)
    return {
        "jvp": lambda: torch.func.jvp(f, (x,), (v,))[1],
        "vmap of grad": lambda: torch.func.vmap(slope)(torch.stack([x, x + v]))[0],
        "HVP, forward over reverse": lambda: torch.func.jvp(slope, (x,), (v,))[1],
        "HVP, reverse over reverse": twice,
    }


def transforms_of(
    library: str, fn: Function, direction: np.ndarray, *arrays: np.ndarray
) -> dict[str, Function]:
    """Transforms by name, each to be called."""
    *numbers, v = arrays_of(library, (*arrays, direction))
    rest = numbers[1:]
    make = _torch_transforms if library in OF_TORCH else _jax_transforms
    return make(lambda x: fn(x, *rest), numbers[0], v)
