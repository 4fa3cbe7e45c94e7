"""What the TPU compiler writes into its dump folder: the program it made, and what fills the memory when it is fullest.

The program's text is read from there because jaxlib can't always read the program of a newer or older libtpu. The dump
is also written of a program that does not fit.
"""

import dataclasses
import re
from pathlib import Path

from jaxscale.sharding.hlo import HloProgram, Instruction, parse_program

_MEMORY_REPORT = "*.after_optimizations-memory-usage-report.txt"
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+), page \d+, (parameter|preallocated-temp|maybe-live-out)")
_PEAK = re.compile(r"^  Live ranges at \d+ \(peak\):$")
_BUFFER = re.compile(r"^    ([\w.\-]+)\{([\d,]*)\}: (\d+) bytes")
_USED = re.compile(r"^Memory Space: default.*\nTotal bytes: (\d+)", re.MULTILINE)
_AVAILABLE = re.compile(r"exceeds available HBM \(([\d.]+)([KMGT]?)\)|of ([\d.]+)([KMGT]?) hbm")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Buffer:
    """One array in a device's memory when it is fullest.

    Attributes:
      num_bytes: with the padding of its layout.
      shape: of one device's part, as HLO writes it; empty where it is a part of a tuple.
      op: the name that jax gave the operation that made it, of an argument its path.
      source: `file.py:line` of the Python that made it; empty for arguments.
    """

    num_bytes: int
    shape: str
    op: str
    source: str


def dump_options(folder: Path) -> dict[str, bool | str]:
    """The options of `Lowered.compile` that make the TPU compiler write its dump into a folder."""
    return {"xla_dump_hlo_as_text": True, "xla_dump_to": str(folder)}


def is_complete(folder: Path) -> bool:
    """Whether the program and its memory are in a dump folder; to make machine code of it takes ten times as long."""
    return any(folder.glob(_MEMORY_REPORT))


def allocated_bytes(folder: Path) -> dict[str, int]:
    """The main memory of a device that a program's `arguments`, `outputs` beside them and `temporaries` take."""
    names = {"parameter": "arguments", "maybe-live-out": "outputs", "preallocated-temp": "temporaries"}
    totals = dict.fromkeys(names.values(), 0)
    with _only(folder, "*.after_optimizations-buffer-assignment.txt").open() as lines:
        for line in lines:
            # Other memories than the main one have a color.
            if (match := _ALLOCATION.match(line)) is not None:
                totals[names[match[2]]] += int(match[1])
    return totals


def dumped_text(folder: Path) -> str:
    """The text of the one program in a dump folder.

    Raises:
      FileNotFoundError: there is none, or more than one.
    """
    return _only(folder, "*.after_optimizations.txt").read_text()


def needed_bytes(folder: Path) -> int | None:
    """The memory that the program needs on one device, arguments included; None where the dump does not say."""
    match = _USED.search(_only(folder, _MEMORY_REPORT).read_text())
    return None if match is None else int(match[1])


def available_bytes(message: str) -> int | None:
    """The memory of a device that the compiler's out-of-memory error names; None where it names none.

    >>> available_bytes("memory required (22.50G) exceeds available HBM (15.75G). HLO module: jit_step") / 2**30
    15.75
    """
    match = _AVAILABLE.search(message)
    if match is None:
        return None
    number, unit = (match[1], match[2]) if match[1] else (match[3], match[4])
    return round(float(number) * _UNITS[unit])


def peak_buffers(folder: Path, *, most: int) -> tuple[Buffer, ...]:
    """The largest arrays in memory when it is fullest, largest first.

    Args:
      folder: a dump folder.
      most: how many at most.
    """
    program = parse_program(dumped_text(folder))
    made = {name: i for computation in program.computations.values() for name, i in computation.instructions.items()}
    lines = _only(folder, "*.after_optimizations-live-range.txt").read_text().splitlines()
    start = next((number for number, line in enumerate(lines) if _PEAK.match(line)), len(lines))
    buffers: list[Buffer] = []
    for line in lines[start + 1 :]:
        match = _BUFFER.match(line)
        if match is None or len(buffers) == most:
            break
        buffers.append(_buffer(program, made.get(match[1]), match[2], int(match[3])))
    return tuple(buffers)


def _buffer(program: HloProgram, made: Instruction | None, index: str, num_bytes: int) -> Buffer:
    if made is None:
        return Buffer(num_bytes=num_bytes, shape="", op="", source="")
    position = int(index) if index.isdigit() else 0
    array = made.arrays[position] if position < len(made.arrays) and "," not in index else None
    shape = "" if array is None else f"{array.dtype}[{','.join(map(str, array.shape))}]"
    return Buffer(
        num_bytes=num_bytes,
        shape=shape,
        op=made.op_name or made.name,
        source=program.source_of(made),
    )


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(f"{folder} has {len(found)} files {pattern}, expected one")
    return found[0]
