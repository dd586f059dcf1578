"""What 1,000 eager calls of every function leave behind, in the process and as arrays.

A program that were compiled and kept at each call would be 200 to 900 MB.
"""

import gc
import sys
from pathlib import Path

import jax

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import cases

CALLS = 1000


def resident():
    """Bytes of the process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main():
    jax.config.update("jax_disable_most_optimizations", True)
    growths = {}
    for case in cases.CASES:
        args = cases.on_device(case.calls["plain"])
        for _ in range(CALLS // 10):
            jax.block_until_ready(case(**args))
        gc.collect()
        before, arrays = resident(), len(jax.live_arrays())
        for _ in range(CALLS):
            jax.block_until_ready(case(**args))
        gc.collect()
        growths[case.name] = (resident() - before) / 2**20
        more = len(jax.live_arrays()) - arrays
        print(f"{case.name:45} {growths[case.name]:8.2f} MiB {more:4} arrays", flush=True)
    most = max(growths, key=growths.get)
    print(
        f"{len(growths)} functions, {sum(growths.values()):.1f} MiB in all, at most "
        f"{growths[most]:.2f} ({most})"
    )


if __name__ == "__main__":
    main()
