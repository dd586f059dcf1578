"""Fixtures of the tests; the root's conftest.py sets what doctests need too."""

import gc
import os
import zlib
from collections import Counter
from collections.abc import Iterator

import hypothesis
import pytest

# Programs for a type checker, which don't run, and what needs torch or coverage to be imported.
collect_ignore = ["typing", "peer_policies.py", "mutate.py"]

# The same examples in every run; `HYPOTHESIS_PROFILE=explore pytest` looks for new ones.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--one-in N``, for a run that has no time for all cases of all tests."""
    text = "run each test with one in so many of its parameters"
    parser.addoption("--one-in", type=int, default=1, metavar="N", help=text)


@pytest.hookimpl(trylast=True)  # after -k and -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out parameters, but no test; tests of the same functions keep different ones."""
    step = config.getoption("one_in")
    names = [item.nodeid.partition("[")[0] for item in items]
    counts, seen = Counter(names), Counter[str]()
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item, name in zip(items, names, strict=True):
        first = zlib.crc32(name.encode()) % min(step, counts[name])
        (left_out if (seen[name] - first) % step else kept).append(item)
        seen[name] += 1
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def little_garbage() -> Iterator[None]:
    """JAX collects garbage for each trace that may leak, of which only new objects are any."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
