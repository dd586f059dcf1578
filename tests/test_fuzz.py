"""A few cases of the fuzzer; ``python tests/fuzz.py --seconds 600`` looks for more."""

import zlib

import fuzz
import fuzz_calls
import fuzz_fits
import fuzz_heads
import pytest


def failures(name: str, settings: int) -> list[str]:
    """Of one program of the function, by turns of what it is compiled for."""
    setting = zlib.crc32(name.encode()) % settings
    seeds = [setting + settings * i for i in range(5)]
    return [failure for seed in seeds for failure in fuzz.check(name, seed)]


@pytest.mark.newest
@pytest.mark.parametrize("name", fuzz.BY_NAME)
def test_some_rows(name: str) -> None:
    assert failures(name, len(fuzz.SETTINGS)) == []


@pytest.mark.newest
@pytest.mark.parametrize("name", fuzz_fits.TARGETS)
def test_some_fits(name: str) -> None:
    assert failures(name, len(fuzz_fits.SETTINGS)) == []


@pytest.mark.newest
@pytest.mark.parametrize("name", fuzz_heads.TARGETS)
def test_some_calls(name: str) -> None:
    assert failures(name, len(fuzz_calls.SETTINGS)) == []
