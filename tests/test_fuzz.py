"""A few cases of the fuzzer; ``python tests/fuzz.py --seconds 600`` looks for more."""

import zlib

import fuzz
import fuzz_calls
import fuzz_fits
import fuzz_heads
import fuzz_mesh
import fuzz_rows
import pytest


def failures(name: str, settings: int) -> list[str]:
    """Of one program of the function, by turns of what it is compiled for."""
    setting = zlib.crc32(name.encode()) % settings
    seeds = [setting + settings * i for i in range(5)]
    return [failure for seed in seeds for failure in fuzz.check(name, seed)]


@pytest.mark.newest
@pytest.mark.parametrize("name", fuzz_rows.BY_NAME)
def test_some_rows(name: str) -> None:
    assert failures(name, len(fuzz_rows.SETTINGS)) == []


@pytest.mark.newest
@pytest.mark.parametrize("name", fuzz_fits.TARGETS)
def test_some_fits(name: str) -> None:
    assert failures(name, len(fuzz_fits.SETTINGS)) == []


@pytest.mark.newest
@pytest.mark.parametrize("name", fuzz_heads.TARGETS)
def test_some_calls(name: str) -> None:
    assert failures(name, len(fuzz_calls.SETTINGS)) == []


# One of each way of running on a mesh; ``tests/mesh`` has the others.
ON_A_MESH = ("softmax", "keep_top_k", "sample", "linear_log_probs")


@pytest.mark.newest
@pytest.mark.parametrize("name", ON_A_MESH)
def test_some_on_a_mesh(name: str) -> None:
    assert failures(name + fuzz_mesh.SUFFIX, len(fuzz_mesh.SETTINGS)) == []
