"""Run the doctests of the installed package, in an environment that has its requirements alone."""

import doctest
import importlib
import pkgutil
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata, resources
from multiprocessing import get_context

import jax
import jax.numpy as jnp

import jaxlogits as jl

# What the documentation and the tests use, and the package must do without.
ABSENT = {"hypothesis", "matplotlib", "optax", "pytest", "sphinx"}


def run(name: str) -> doctest.TestResults:
    """The examples of one module, under the settings of conftest.py."""
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    return doctest.testmod(
        importlib.import_module(name),
        extraglobs={"jax": jax, "jnp": jnp, "jl": jl},
        optionflags=doctest.NORMALIZE_WHITESPACE,
    )


def main() -> None:
    """Exit with the examples that fail, or with what isn't as installed."""
    installed = {distribution.name for distribution in metadata.distributions()}
    if not jl.__file__.startswith(sys.prefix) or installed & ABSENT:
        sys.exit(f"{jl.__file__} is not installed alone")
    if not resources.files(jl).joinpath("py.typed").is_file():
        sys.exit("py.typed is missing")
    modules = [module.name for module in pkgutil.walk_packages(jl.__path__, "jaxlogits.")]
    # Processes of their own, because the examples spend their time compiling.
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(run, modules))
    attempted, failed = (
        sum(getattr(r, field) for r in results) for field in ("attempted", "failed")
    )
    if failed or attempted < len(jl.__all__):
        sys.exit(f"{failed} of {attempted} examples failed")
    print(f"jaxlogits {jl.__version__}: {attempted} examples, beside {len(installed) - 1} packages")


if __name__ == "__main__":
    main()
