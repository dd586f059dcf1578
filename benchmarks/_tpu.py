"""The time of a compiled TPU program, modelled from its text: a ranking of programs, not a clock.

The compiler writes its estimate of cycles beside each instruction, trip counts stand in the
conditions of loops. Matrix products, with what is fused into them, take these cycles. Everything
else takes the time to read and write its arrays in main memory at 0.8 of the bandwidth, because its
cycles are estimated at about twice that. Asynchronous copies are taken to hide behind the rest.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies


class Chip(NamedTuple):
    """What the maker says of one."""

    topology: str
    clock: float  # Hz
    peak: float  # operations a second, in bfloat16
    bandwidth: float  # bytes a second

    @property
    def device(self) -> Any:
        """One to compile for."""
        return topologies.get_topology_desc(self.topology, "tpu").devices[0]


CHIPS = {
    "v5e": Chip("v5e:2x2", 1.5e9, 197e12, 819e9),
    "v6e": Chip("v6e:2x2", 1.75e9, 918e12, 1640e9),
}
SHARE = 0.8  # of the bandwidth
TILE = 4096  # bytes that are read for one number that is gathered
BITS = {"pred": 8, "bf16": 16}
PRODUCTS = ("convolution", "dot")
FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant")
ARRAY = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\](?:\{([^}]*)\})?")
INSTRUCTION = re.compile(r"^  +(ROOT )?%?([\w.-]+) = (.+?) ([a-z][\w-]*)\((.*)$")


class Instruction(NamedTuple):
    """One line of a computation."""

    is_root: bool
    name: str
    type: str
    op: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.rest.split(")", 1)[0])

    def calls(self, role: str) -> list[str]:
        """The computations that it calls in a role."""
        return re.findall(rf"\b{role}=%?([\w.-]+)", self.rest)

    @property
    def cycles(self) -> int:
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else 0


Program = dict[str, dict[str, Instruction]]


def parse(text: str) -> tuple[Program, str]:
    """The computations of a compiled program, and which one it starts with."""
    program: Program = {}
    entry = ""
    for line in text.splitlines():
        if head := re.match(r"^(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            current = program.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif found := INSTRUCTION.match(line):
            one = Instruction(bool(found[1]), *found.groups()[1:])
            current[one.name] = one
    return program, entry


def num_bytes(of_type: str, *, anywhere: bool = False) -> int:
    """Of the arrays in main memory; those in a faster one have a memory space."""
    total = 0
    for dtype, dims, layout in ARRAY.findall(of_type):
        if anywhere or not re.search(r"S\([1-9]\)", layout):
            bits = BITS.get(dtype) or int(dtype[1:])
            total += bits * math.prod(int(d) for d in dims.split(",") if d) // 8
    return total


def is_product(program: Program, one: Instruction) -> bool:
    """Whether there is a matrix product in it."""
    inner = [x for name in one.calls("calls") for x in program[name].values()]
    return one.op in PRODUCTS or any(is_product(program, x) for x in inner)


def traffic(program: Program, within: dict[str, Instruction], one: Instruction) -> int:
    """Bytes that an instruction reads and writes; of a slice or an update in place, its part."""
    if one.op == "dynamic-slice":
        return 2 * num_bytes(one.type)
    if one.op == "dynamic-update-slice":
        return 2 * num_bytes(within[one.operands[1]].type)
    operands = [within[name].type for name in one.operands]
    if one.op != "fusion":
        return num_bytes(one.type) + sum(map(num_bytes, operands))
    inner = program[one.calls("calls")[0]]
    total = 0
    for x in inner.values():
        if x.op == "parameter":
            whole = num_bytes(operands[int(x.rest.split(")")[0])])
            total += min(whole, _read(inner, x.name, whole))
        if x.is_root:
            results = [inner[name] for name in x.operands] if x.op == "tuple" else [x]
            updates = [inner[r.operands[1]] for r in results if r.op == "dynamic-update-slice"]
            is_in_place = len(updates) == len(results)
            total += sum(num_bytes(u.type) for u in updates) if is_in_place else num_bytes(one.type)
    return total


def _read(within: dict[str, Instruction], name: str, whole: int) -> int:
    """Bytes of an array in main memory that its users in a fusion read."""
    total = 0
    for user in within.values():
        if name in user.operands:
            is_first = user.operands[0] == name
            if user.op == "fusion" and "output_to_operand_aliasing" in user.rest:
                total += _read(within, user.name, whole)  # another layout, as it is read
            elif user.op == "dynamic-slice" and is_first:
                total += min(whole, num_bytes(user.type, anywhere=True))
            elif user.op == "gather" and is_first:
                total += TILE * math.prod(map(int, _dims(user.type)))
            elif not (user.op == "dynamic-update-slice" and is_first):
                total += whole
    return total


def _dims(of_type: str) -> list[str]:
    return [d for d in ARRAY.findall(of_type)[0][1].split(",") if d]


def trips(program: Program, loop: Instruction) -> int:
    """How often its body runs."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = program[loop.calls("condition")[0]].values()
    bounds = [x for x in condition if x.op == "constant" and x.type.startswith("s32[]")]
    return max(int(x.rest.split(")")[0]) for x in bounds)


def steps(program: Program, name: str, times: int = 1) -> Iterator[tuple[Any, Any, int]]:
    """Every instruction that takes time, where it stands, and how often it runs."""
    for one in program[name].values():
        if one.op == "while":
            yield from steps(program, one.calls("body")[0], times * trips(program, one))
        elif one.op in ("call", "conditional"):
            for called in one.calls("(?:to_apply|true_computation|false_computation)"):
                yield from steps(program, called, times)
        elif one.op not in FREE and (one.cycles or one.op == "fusion"):
            yield program[name], one, times


def seconds(text: str, chip: Chip) -> float:
    """The modelled time of a compiled program."""
    program, entry = parse(text)
    total = 0.0
    for within, one, times in steps(program, entry):
        if is_product(program, one):
            total += times * one.cycles / chip.clock
        else:
            total += times * traffic(program, within, one) / (SHARE * chip.bandwidth)
    return total


def compile_for(fn: Any, chip: Chip, *types: jax.ShapeDtypeStruct) -> Any:
    """The program for one chip, which is the default device meanwhile."""
    place = jax.sharding.SingleDeviceSharding(chip.device)
    placed = [jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=place) for t in types]
    with jax.default_device(chip.device):
        return jax.jit(fn).lower(*placed).compile()
