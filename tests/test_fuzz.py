"""A few cases of the fuzzer; ``python tests/fuzz.py --seconds 600`` looks for more."""

import zlib

import fuzz
import fuzz_calls
import fuzz_fits
import fuzz_heads
import pytest


@pytest.mark.newest
@pytest.mark.parametrize("name", fuzz.BY_NAME)
def test_some_rows(name: str) -> None:
    """One program of each function, by turns of what it is compiled for."""
    setting = zlib.crc32(name.encode()) % len(fuzz.SETTINGS)
    seeds = [setting + len(fuzz.SETTINGS) * i for i in range(5)]
    assert [failure for seed in seeds for failure in fuzz.check(name, seed)] == []


@pytest.mark.newest
@pytest.mark.parametrize("name", fuzz_fits.TARGETS)
def test_some_fits(name: str) -> None:
    """One program of each function."""
    setting = zlib.crc32(name.encode()) % len(fuzz_fits.SETTINGS)
    seeds = [setting + len(fuzz_fits.SETTINGS) * i for i in range(5)]
    assert [failure for seed in seeds for failure in fuzz.check(name, seed)] == []


@pytest.mark.newest
@pytest.mark.parametrize("name", fuzz_heads.TARGETS)
def test_some_calls(name: str) -> None:
    setting = zlib.crc32(name.encode()) % len(fuzz_calls.SETTINGS)
    seeds = [setting + len(fuzz_calls.SETTINGS) * i for i in range(5)]
    assert [failure for seed in seeds for failure in fuzz.check(name, seed)] == []
