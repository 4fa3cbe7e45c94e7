"""XLA's "involuntary full rematerialization": caught while a program compiles, and named with its Python line.

Where XLA finds no way from one sharding of an array to another, it copies the whole array to every device and cuts it
anew. It says so on the C++ side's standard error alone, and only where `TF_CPP_MIN_LOG_LEVEL` was 0 or 1 before jax was
imported (jax sets 1 where nothing is set), for TPU programs `TPU_STDERR_LOG_LEVEL` too. The step computes what it
should; memory and bytes moved are what suffers.
"""

import contextlib
import dataclasses
import math
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxscale.errors import UsageError
from jaxscale.sharding.hlo import Array, Instruction, parse_instruction, parse_program

_WARNING = re.compile(
    r"nvoluntary full rematerialization\. The compiler .*? from sharding (?P<before>\{.*?\}) to (?P<after>\{.*?\}) "
    r"efficiently for HLO operation (?P<instruction>%.*?)\. As the last resort"
)
_MARK = b"nvoluntary full rematerialization"
# Where XLA weighs ways to gather and scatter rows, it partitions each in a module that it throws away, and warns of
# what it finds there. Nothing there has metadata, while what is made of a jax operation in the program carries its own.
# Reference: openxla/xla, xla/service/spmd/spmd_partitioner_util.h, EvaluatePartitionCost.
_OF_THE_PROGRAM = "metadata={"
# Shardings as jax 0.10's compiler writes them, `{devices=[2,4]<=[8]}`, and jax 0.12's, `{mesh['a'=2], [{'a'}, {}]}`.
_TILES = re.compile(r"devices=\[([\d,]+)\]")
_MESH = re.compile(r"mesh\[(.*?)\], \[(.*)\]")
_AXIS_SIZE = re.compile(r"'([^']+)'=(\d+)")
_DIM = re.compile(r"\{([^{}]*)\}")
_AXIS = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")
_STDERR = 2
_CHUNK_BYTES = 65536
_MAX_SHOWN = 5

# Standard error belongs to the process, so that one thread at a time can listen to it.
_LISTENING = threading.RLock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rematerialization:
    """One array that the compiled program copies whole to every device in order to change how it is split.

    Attributes:
      op_name: what jax calls the operation that makes it, as `jit(f)/sharding_constraint`.
      source: `file.py:line` of the Python that made it; empty where the compiler kept none.
      dtype: of the array, as HLO writes it.
      shape: of the whole array, padding included.
      num_bytes: of the whole array, which every device holds for a while.
      before: the sharding it comes from, in the compiler's words.
      after: the sharding it goes to.
    """

    op_name: str
    source: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    before: str
    after: str

    def __str__(self) -> str:
        where = self.source or "a line the compiler does not know"
        return (
            f"{self.op_name or 'an operation of the compiler'} at {where}: {self.dtype} {self.shape}, {self.num_bytes} "
            f"bytes, is copied whole to every device to go from {self.before} to {self.after}"
        )


def compile_watched(
    lowered: jax.stages.Lowered, compiler_options: Mapping[str, Any] | None = None
) -> tuple[jax.stages.Compiled, tuple[Rematerialization, ...]]:
    """Compiles, and says which arrays the program copies whole to change how they are split.

    Args:
      lowered: what to compile.
      compiler_options: as for `Lowered.compile`.
    """
    with watching() as heard:
        compiled = lowered.compile(dict(compiler_options) if compiler_options else None)
    return compiled, rematerializations(heard, lowered)


def rematerializations(heard: Sequence[str], lowered: jax.stages.Lowered) -> tuple[Rematerialization, ...]:
    """The compiler's warnings, read; those of ways that it only weighed left out.

    Args:
      heard: lines of `watching`, or of another process's standard error; others than the warnings are passed over.
      lowered: what was compiled, for the Python lines.
    """
    warnings = [match for line in heard if (match := _WARNING.search(line)) is not None]
    found = [match for match in warnings if _OF_THE_PROGRAM in match["instruction"]]
    if not found:
        return ()
    # Printed only now: the text of a large program takes a while.
    program = parse_program(lowered.as_text("hlo", debug_info=True))
    made = []
    for match in found:
        instruction = parse_instruction(f"  {match['instruction']}")
        array = _whole(instruction, match["before"])
        made.append(
            Rematerialization(
                op_name=instruction.op_name,
                source=program.source_of(instruction),
                dtype=array.dtype,
                shape=array.shape,
                num_bytes=array.num_bytes,
                before=match["before"],
                after=match["after"],
            )
        )
    return tuple(dict.fromkeys(made))


def refuse(found: Sequence[Rematerialization], budget_bytes: int, *, report: Mapping[str, Any] | None = None) -> None:
    """Refuses a program that copies an array above a budget to every device.

    Args:
      found: of `compile_watched`.
      budget_bytes: what may be copied, of one array.
      report: what else is known of the program, as JSON values; it goes along with the error.

    Raises:
      UsageError: an array is larger; with its line, its bytes and what to do.
    """
    above = sorted((one for one in found if one.num_bytes > budget_bytes), key=lambda one: -one.num_bytes)
    if above:
        more = [f"and {len(above) - _MAX_SHOWN} more"] if len(above) > _MAX_SHOWN else []
        raise UsageError(
            f"XLA finds no way from one sharding to another but a copy of the whole, above {budget_bytes} bytes; take "
            "the constraint at that line away, or split over the same axes in the same order before and behind it:\n  "
            + "\n  ".join([*map(str, above[:_MAX_SHOWN]), *more]),
            report=report,
        )


@contextlib.contextmanager
def watching() -> Iterator[list[str]]:
    """Listens to the process's standard error (file descriptor 2) for the warning.

    Whatever else is written there goes on to where it went before, as it comes: if the compiler ends the process, its
    last words are not lost. Without a standard error there is nothing to hear.

    Yields:
      A list that holds the warning's lines once the context has ended.
    """
    heard: list[str] = []
    with _LISTENING:
        try:
            before = os.dup(_STDERR)
        except OSError:
            yield heard
            return
        reading, writing = os.pipe()
        os.dup2(writing, _STDERR)
        os.close(writing)
        # Compiling gives up Python's lock, so the pipe is emptied while XLA writes to it.
        listener = threading.Thread(target=_pass_on, args=(reading, before, heard), name="standard error", daemon=True)
        listener.start()
        try:
            yield heard
        finally:
            os.dup2(before, _STDERR)
            listener.join()
            os.close(before)


def _pass_on(reading: int, before: int, heard: list[str]) -> None:
    """Until the pipe's other end is closed: keeps the warning's lines, writes all others to `before`."""
    rest = b""
    while chunk := os.read(reading, _CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            _keep_or_write(line, b"\n", before, heard)
    if rest:
        _keep_or_write(rest, b"", before, heard)
    os.close(reading)


def _keep_or_write(line: bytes, end: bytes, before: int, heard: list[str]) -> None:
    if _MARK in line:
        heard.append(line.decode(errors="replace"))
    else:
        # A reader of ours that has left is no reason to stop listening.
        with contextlib.suppress(OSError):
            os.write(before, line + end)


def _whole(instruction: Instruction, sharding: str) -> Array:
    """The array that an instruction of one device makes a part of."""
    part = instruction.arrays[0]
    parts = _parts(sharding, len(part.shape))
    return Array(part.dtype, tuple(math.prod(pair) for pair in zip(part.shape, parts, strict=True)))


def _parts(sharding: str, rank: int) -> list[int]:
    """How many parts every dim is in."""
    tiles, mesh = _TILES.search(sharding), _MESH.search(sharding)
    if tiles is not None:
        return [int(number) for number in tiles[1].split(",")][:rank]
    if mesh is None:
        return [1] * rank
    sizes = {axis: int(size) for axis, size in _AXIS_SIZE.findall(mesh[1])}
    dims = _DIM.findall(mesh[2])[:rank]
    return [math.prod(int(part) if part else sizes[axis] for axis, part in _AXIS.findall(dim)) for dim in dims]
