"""The text of a compiled XLA program (HLO), read into computations of instructions; knows nothing of meshes.

Speaks what jax's `Compiled.as_text()` prints for CPU and TPU programs. Only the lines that are asked for are parsed.

Reference: OpenXLA, "HLO semantics", https://openxla.org/xla/operation_semantics
"""

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Iterator, Mapping

# Programs that are not compiled yet are printed without the parameters.
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
# A computation of a thread of its own says so behind its brace.
_END = re.compile(r"^\}(?:, execution_thread=.*)?\s*(?://.*)?$")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_BITS = re.compile(r"^[a-z]+?(\d+)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_SOURCE = re.compile(r'source_file="([^"]*)" source_line=(\d+)')
_TABLE_ROW = re.compile(r"^(\d+) (.*)$")


@dataclasses.dataclass(frozen=True)
class Array:
    """The dtype and shape of one array, as HLO writes them.

    >>> Array("bf16", (4, 2)).num_bytes
    16
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its values, without the padding that a device's layout adds."""
        bits = 8 if self.dtype == "pred" else int(match[1]) if (match := _BITS.match(self.dtype)) else 0
        return -(-bits * math.prod(self.shape) // 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction.

    Attributes:
      name: unique in its program.
      opcode: as `all-reduce` or `fusion`.
      arrays: the leaves of its result.
      operands: the names of what it reads.
      argument: the text between its parentheses; of a `constant` its value.
      attributes: the text behind them.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str

    @property
    def num_bytes(self) -> int:
        """Bytes of its result, on one device."""
        return sum(array.num_bytes for array in self.arrays)

    @property
    def called(self) -> dict[str, str]:
        """The computations it runs, by the attribute that names them: `calls`, `to_apply`, `body`, `condition`, ..."""
        found = {match[1]: match[2] for match in _CALLED.finditer(self.attributes)}
        branches = _BRANCHES.search(self.attributes)
        names = [] if branches is None else [name.strip().lstrip("%") for name in branches[1].split(",")]
        return found | {f"branch {index}": name for index, name in enumerate(names)}

    @property
    def op_name(self) -> str:
        """What jax calls it; of an argument of the program its path; empty where the compiler made it."""
        return (self.attribute(r'\bop_name="([^"]*)"') or "").replace("\\'", "'")

    def attribute(self, pattern: str) -> str | None:
        """The first group of a regular expression in its attributes, or None."""
        match = re.search(pattern, self.attributes)
        return None if match is None else match[1]


@dataclasses.dataclass(frozen=True)
class Computation:
    """A computation: instructions in the order they run, by name; the last one that is marked so is its root."""

    name: str
    lines: tuple[str, ...]

    @functools.cached_property
    def instructions(self) -> Mapping[str, Instruction]:
        """All its instructions, by name, in their order."""
        return {instruction.name: instruction for instruction in map(parse_instruction, self.lines)}

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        marked = [line for line in self.lines if line.lstrip().startswith("ROOT ")]
        return parse_instruction((marked or list(self.lines))[-1])

    def operands_of(self, instruction: Instruction) -> Iterator[Instruction]:
        """What an instruction reads."""
        return (self.instructions[name] for name in instruction.operands)


@dataclasses.dataclass(frozen=True)
class HloProgram:
    """A compiled program.

    Attributes:
      computations: by name.
      entry: the name of the one that runs first.
      num_partitions: the devices that it numbers; on several TPU slices those of one slice.
      tables: the lines of the tables behind its header, by the table's name.
    """

    computations: Mapping[str, Computation]
    entry: str
    num_partitions: int
    tables: Mapping[str, tuple[str, ...]]

    def source_of(self, instruction: Instruction) -> str:
        """`file.py:line` of the Python that made an instruction; empty where the compiler kept none."""
        inline = _SOURCE.search(instruction.attributes)
        if inline is not None:
            return f"{pathlib.PurePath(inline[1]).name}:{inline[2]}"
        frame = _FRAME.search(instruction.attributes)
        return "" if frame is None else self._sources.get(int(frame[1]), "")

    @functools.cached_property
    def _sources(self) -> dict[int, str]:
        files = {number: text.strip('"') for number, text in _rows(self.tables.get("FileNames", ()))}
        locations = {number: _fields(text) for number, text in _rows(self.tables.get("FileLocations", ()))}
        sources = {}
        for number, text in _rows(self.tables.get("StackFrames", ())):
            location = locations.get(_fields(text).get("file_location_id", 0), {})
            file = files.get(location.get("file_name_id", 0))
            if file is not None:
                sources[number] = f"{pathlib.PurePath(file).name}:{location['line']}"
        return sources


def parse_program(text: str) -> HloProgram:
    """Reads the text of a compiled program.

    Args:
      text: what `Compiled.as_text()` returns.

    Raises:
      ValueError: it has no entry computation, so that it is no such text.
    """
    computations: dict[str, Computation] = {}
    tables: dict[str, list[str]] = {}
    entry, open_name = "", ""
    open_lines: list[str] = []
    table: list[str] = []
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header is not None:
            open_name, open_lines = header[2], []
            entry = header[2] if header[1] else entry
        elif _END.match(line):
            computations[open_name] = Computation(open_name, tuple(open_lines))
            open_name = ""
        elif open_name and _INSTRUCTION.match(line):
            open_lines.append(line)
        elif open_name and open_lines:
            # An attribute of several lines, as Pallas's metadata of a kernel is.
            open_lines[-1] += f" {line}"
        elif line.isalpha():
            table = tables.setdefault(line, [])
        else:
            table.append(line)
    if not entry:
        raise ValueError("this is no text of a compiled program: it has no ENTRY computation")
    partitions = re.search(r"\bnum_partitions=(\d+)", text.partition("\n")[0])
    return HloProgram(
        computations=computations,
        entry=entry,
        num_partitions=int(partitions[1]) if partitions else 1,
        tables={name: tuple(lines) for name, lines in tables.items()},
    )


def parse_instruction(line: str) -> Instruction:
    """Reads the line of one instruction.

    Raises:
      ValueError: it is no instruction.

    >>> made = parse_instruction("  ROOT %sum = f32[4,2]{1,0} add(%x, %y), metadata={}")
    >>> made.name, made.opcode, made.operands, made.num_bytes
    ('sum', 'add', ('x', 'y'), 32)
    """
    start = _INSTRUCTION.match(line)
    if start is None:
        raise ValueError(f"this is no HLO instruction: {line[:200]!r}")
    shape_end = _closing(line, start.end()) if line[start.end()] == "(" else line.index(" ", start.end())
    opcode = _OPCODE.match(line, shape_end)
    if opcode is None:
        raise ValueError(f"this HLO instruction has no opcode: {line[:200]!r}")
    end = _closing(line, opcode.end() - 1)
    argument = line[opcode.end() : end - 1]
    return Instruction(
        name=start[2],
        opcode=opcode[1],
        arrays=tuple(_arrays(line[start.end() : shape_end])),
        operands=tuple(_NAME.findall(argument)),
        argument=argument,
        attributes=line[end:],
    )


def _arrays(text: str) -> Iterator[Array]:
    for dtype, dims in _ARRAY.findall(text):
        yield Array(dtype, tuple(int(dim.lstrip("<=")) for dim in dims.split(",") if dim))


def _closing(text: str, start: int) -> int:
    """The position behind the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"a parenthesis is never closed: {text[start : start + 200]!r}")


def _rows(lines: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    return ((int(match[1]), match[2]) for match in map(_TABLE_ROW.match, lines) if match is not None)


def _fields(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", text)}
