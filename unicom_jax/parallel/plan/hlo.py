"""Parses a compiled program's text, as XLA prints it, into instructions.

Only what a plan needs is parsed: names, opcodes, shapes, memory spaces, operands, and attributes as
text. The format is XLA's `HloModule` text, https://openxla.org/xla/hlo_dialect.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from functools import cached_property

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,<=]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_COMMENT = re.compile(r"/\*.*?\*/")


def bits_of(dtype: str) -> int:
    """Bits of an element such as "f32" or "s4"; 8-bit floats have long names ("f8e4m3fn")."""
    if dtype in BITS:
        return BITS[dtype]
    return int(re.match(r"[a-z]+(\d+)", dtype)[1])


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's value.

    Attributes:
      space: the array's memory; 0 is the device's main memory. On TPU 1 is VMEM, on the chip.
    """

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> float:
        return self.size * bits_of(self.dtype) / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line. `inner` is the text between its brackets, `attributes` the text after them."""

    name: str
    opcode: str
    outputs: tuple[Array, ...]
    operands: tuple[str, ...]
    inner: str
    attributes: str
    root: bool

    def attribute(self, name: str) -> str | None:
        """The word after `name=`, without a leading %."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    def numbers(self, name: str) -> tuple[int, ...]:
        """The list in `name={0,1}`; () if there is none."""
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return tuple(map(int, filter(None, found[1].split(",")))) if found else ()


@dataclasses.dataclass(frozen=True)
class Computation:
    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {one.name: one for one in self.instructions}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Instructions that read each name."""
        users: dict[str, list[Instruction]] = {}
        for one in self.instructions:
            for operand in set(one.operands):
                users.setdefault(operand, []).append(one)
        return users

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        found = (one for one in self.instructions if one.opcode == "parameter")
        return {int(one.inner): one for one in found}

    @property
    def root(self) -> Instruction:
        return next(one for one in self.instructions if one.root)

    def arrays(self, names: tuple[str, ...]) -> Iterator[Array]:
        """All arrays of the named values, in order."""
        for name in names:
            if name in self.by_name:
                yield from self.by_name[name].outputs


@dataclasses.dataclass(frozen=True)
class Program:
    computations: Mapping[str, Computation]
    entry: str


def parse_program(text: str) -> Program:
    """Reads `compiled.as_text()`.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, name, lines = None, None, []
    for line in text.splitlines():
        if name is None:
            if header := _HEADER.match(line):
                name, lines = header[2], []
                entry = name if header[1] else entry
        elif line.startswith("}"):
            computations[name] = Computation(name, tuple(lines))
            name = None
        elif (one := _parse_line(line)) is not None:
            lines.append(one)
    if entry is None:
        raise ValueError("the program's text has no ENTRY computation; give compiled.as_text()")
    return Program(computations, entry)


def _parse_line(line: str) -> Instruction | None:
    if not (head := _INSTRUCTION.match(line)):
        return None
    rest = _COMMENT.sub("", line[head.end() :])
    if rest.startswith("("):
        end = _closing(rest, 0) + 1
    else:
        end = rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opened = rest.index("(")
    closed = _closing(rest, opened)
    inner = rest[opened + 1 : closed]
    outputs = tuple(_parse_array(*found) for found in _ARRAY.findall(kind))
    operands = tuple(re.findall(r"%([\w.\-]+)", inner))
    opcode, attributes = rest[:opened], rest[closed + 1 :]
    return Instruction(head[2], opcode, outputs, operands, inner, attributes, bool(head[1]))


def _closing(text: str, opened: int) -> int:
    """Index of the bracket that closes the one at `opened`."""
    depth = 0
    for place in range(opened, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"a bracket is not closed in {text[:80]!r}")


def _parse_array(dtype: str, sizes: str, layout: str) -> Array:
    shape = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
    space = re.search(r"S\((\d+)\)", layout)
    return Array(dtype, shape, int(space[1]) if space else 0)
