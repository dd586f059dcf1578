"""What the devices of a mesh send to each other, counted in a compiled program."""

import re
from collections import Counter

KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"


def collectives(program: str) -> Counter[str]:
    """How often each kind of collective runs, from the text of a compiled program.

    A collective in the body of a loop counts once for each step.
    """
    computations = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+).*\{\n((?: .*\n)+)\}", program, re.M))
    (entry,) = re.findall(r"^ENTRY %?([\w.-]+)", program, re.M)

    def steps(loop: str) -> int:
        # The CPU's compiler says it; the TPU's leaves the loop's bound in its condition.
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop):
            return int(known[1])
        condition = re.search(r"condition=%?([\w.-]+)", loop)
        (bound,) = re.findall(r"s32\[\]\S* constant\((\d+)\)", computations[condition[1]])
        return int(bound)

    def count(name: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for line in computations[name].splitlines():
            kind = re.search(rf" ({KINDS})(?:-start)?\(", line)
            if kind and "replica_groups={{0}}" not in line:  # one device has nobody to send to
                found[kind[1]] += 1
            for called in re.findall(r"(?:body|calls|branch_computations=\{)=?%?([\w.-]+)", line):
                inner = count(called)
                times = steps(line) if inner and " while(" in line else 1
                found.update({kind: times * n for kind, n in inner.items()})
        return found

    return count(entry)
