"""The largest difference from what other packages compute of the same data, in float64.

Writes benchmarks/results/agreement-cpu.md, with the packages of the extras `test` and `oracles`:

    JAX_PLATFORMS=cpu python benchmarks/agreement.py
"""

import sys
from pathlib import Path

from _measure import table, versions, write_result

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "tests"), str(ROOT / "examples")]

import peer_numbers  # noqa: E402


def main() -> None:
    rows = []
    for peer in peer_numbers.PEERS:
        for pair in peer_numbers.pairs_of(peer):
            rows.append([peer, pair.what, f"{pair.difference:.0e}", f"{pair.tolerance:.0e}"])
            print(*rows[-1], sep=" | ", flush=True)
            assert pair.difference <= pair.tolerance
    packages = ("jax", "firthmodels", "scikit-learn", "netcal", "torchmetrics", "trl", "torch")
    write_result(
        "agreement",
        "# What other packages compute of the same data",
        f"{versions(*packages)}.",
        "Written by `benchmarks/agreement.py`, in float64. The difference is the largest of all "
        "numbers that are compared, relative to the largest of the peer's; "
        "`tests/test_peer_numbers.py` holds it below the bound, where the package is installed. "
        "Published numbers have the digits that were printed.",
        table(["package", "what", "largest difference", "bound"], rows),
    )


if __name__ == "__main__":
    main()
