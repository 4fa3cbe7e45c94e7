"""The collectives of a compiled program, by kind and mesh axis, loops multiplied out; a budget of them for tests."""

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias, get_args

import jax
import numpy as np
from jax.sharding import Mesh

from jaxscale.mesh import MeshSpec
from jaxscale.sharding.device_groups import axes_spanned, parse_groups, parse_pairs
from jaxscale.sharding.hlo import Computation, HloProgram, Instruction, parse_program
from jaxscale.sharding.plan import render_table
from jaxscale.sharding.trip_counts import trip_count

CollectiveKind = Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all", "collective_permute"]
COLLECTIVE_KINDS: tuple[CollectiveKind, ...] = get_args(CollectiveKind)
# By axes, joined by `*` as in `data*fsdp`, then by kind: how often, and the bytes of all of them; None allows any.
Budget: TypeAlias = Mapping[str, Mapping[str, tuple[int | None, int | None]]]

_KINDS: dict[str, CollectiveKind] = {
    "all-gather": "all_gather",
    "all-reduce": "all_reduce",
    "reduce-scatter": "reduce_scatter",
    "all-to-all": "all_to_all",
    "ragged-all-to-all": "all_to_all",
    "collective-permute": "collective_permute",
    "collective-broadcast": "collective_permute",
}
# Between TPU slices a collective is a transfer by the hosts.
_TRANSFERS: dict[str, CollectiveKind] = {
    "ALL_GATHER": "all_gather",
    "ALL_REDUCE": "all_reduce",
    "REDUCE_SCATTER": "reduce_scatter",
    "ALL_TO_ALL": "all_to_all",
    "ONE_TO_ONE": "collective_permute",
}
_SLICES = "slice"
_CALLS = frozenset({"fusion", "call", "async-start", "custom-call"})
# A collective that goes on during other work stands in the program once for each part of that work.
_CHAIN = r'\bchain_id="(\d+)"'
_CHANNEL = r"\bchannel_id=(\d+)"
_TRANSFER = r'_xla_megascale_transfer_type="(\w+)"'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of a compiled program.

    Attributes:
      kind: what it does.
      axes: the mesh axes that its groups span, in the mesh's order.
      group_size: devices that take part together; fewer than the axes have where a part of an axis does.
      num_bytes: of one run on one device: what is gathered once it is whole, what is to be reduced, what one device
        holds before an all_to_all, what it sends in a collective_permute. Padding is not counted.
      num_runs: how often one execution of the program runs it.
      num_runs_known: whether all loops that it stands in have a known number of turns; one that has none counts once.
      op: the name that jax gave the operation.
      source: `file.py:line` of the Python that made it.
    """

    kind: CollectiveKind
    axes: tuple[str, ...]
    group_size: int
    num_bytes: int
    num_runs: int
    num_runs_known: bool
    op: str
    source: str

    @property
    def axes_text(self) -> str:
        """The axes for people and for a `Budget`, as `fsdp` or `data*fsdp`."""
        return "*".join(self.axes)

    @property
    def total_bytes(self) -> int:
        """`num_bytes` of all its runs."""
        return self.num_bytes * self.num_runs


def collectives(text: str, axes: Mapping[str, int]) -> tuple[Collective, ...]:
    """Every collective that moves something, in the order in which the program first runs them.

    Of the branches of a conditional the one that moves most is counted.

    Args:
      text: of a compiled program, as `Compiled.as_text()` returns it.
      axes: the sizes of the mesh's axes, in its order, as in `MeshSpec.sizes`.
    """
    program = parse_program(text)
    start = _Place(program.computations[program.entry], 1, True, set())
    return tuple(_walk(program, dict(axes), start))


def assert_collectives(program: Any, mesh: Mesh | MeshSpec, expected: Budget, *arguments: Any) -> None:
    """Asserts that a program has exactly the expected collectives: no others, no more, no fewer; for tests.

    Loops are multiplied out. Where XLA joins several arrays into one operation, that is one.

    Args:
      program: compiled or lowered by jax, its HLO text, or a function to compile for `arguments`.
      mesh: what it was compiled for.
      expected: as `{"tensor": {"all_reduce": (2, 2 * num_bytes)}}`; the bytes are those of `Collective.num_bytes`,
        added up over all runs; None allows any number.
      arguments: of the function, arrays or `jax.ShapeDtypeStruct` with their shardings.

    Raises:
      AssertionError: with a table of what was expected and found, and the line of Python that made each.
    """
    axes = mesh.sizes if isinstance(mesh, MeshSpec) else dict(mesh.shape)
    found = collectives(_text_of(program, arguments), axes)
    totals: dict[tuple[str, str], list[Collective]] = collections.defaultdict(list)
    for collective in found:
        totals[collective.axes_text, collective.kind].append(collective)
    wanted = {(axis, kind): budget for axis, kinds in expected.items() for kind, budget in kinds.items()}
    rows = [_row(key, wanted.get(key, (0, 0)), totals.get(key, [])) for key in sorted({*totals, *wanted})]
    wrong = [rows_of_key for is_wrong, rows_of_key in rows if is_wrong]
    if wrong:
        header = ("axes", "kind", "expected", "found", "made by")
        table = render_table([header, *(row for rows_of_key in wrong for row in rows_of_key)])
        raise AssertionError("\n".join(["the collectives are not those expected:", *table]))


def _row(
    key: tuple[str, str], budget: tuple[int | None, int | None], found: list[Collective]
) -> tuple[bool, list[tuple[str, ...]]]:
    count, num_bytes = sum(c.num_runs for c in found), sum(c.total_bytes for c in found)
    is_wrong = budget[0] not in (None, count) or budget[1] not in (None, num_bytes)
    is_wrong |= not all(c.num_runs_known for c in found)
    parts = [_made_by(c) for c in sorted(found, key=lambda c: -c.total_bytes)] or [""]
    first = (*key, _counted(*budget), _counted(count, num_bytes), parts[0])
    return is_wrong, [first, *(("", "", "", "", part) for part in parts[1:])]


def _counted(count: int | None, num_bytes: int | None) -> str:
    times = "any number" if count is None else f"{count:,}"
    return f"{times}, {'any' if num_bytes is None else f'{num_bytes:,}'} bytes"


def _made_by(collective: Collective) -> str:
    loops = "" if collective.num_runs_known else ", in a loop of unknown length"
    of = f"{collective.num_runs:,} x {collective.num_bytes:,} bytes over {collective.group_size} devices{loops}"
    return f"{of}: {collective.source or 'the compiler'} {collective.op}".rstrip()


def _text_of(program: Any, arguments: tuple[Any, ...]) -> str:
    if isinstance(program, str):
        return program
    if callable(program) and not isinstance(program, jax.stages.Compiled):
        program = jax.jit(program).lower(*arguments)
    if isinstance(program, jax.stages.Lowered):
        program = program.compile()
    text: str = program.as_text()
    return text


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where in a program the walk is: a computation, how often it runs, and the chains it has met."""

    computation: Computation
    num_runs: int
    num_runs_known: bool
    chains: set[tuple[str | None, str]]


def _walk(program: HloProgram, axes: dict[str, int], place: _Place) -> Iterator[Collective]:
    """The collectives of one computation and of all that it runs, in their order."""
    for instruction in place.computation.instructions.values():
        if instruction.opcode == "while":
            turns = trip_count(program, instruction, place.computation.name)
            body = program.computations[instruction.called["body"]]
            known = place.num_runs_known and turns is not None
            yield from _walk(
                program, axes, _Place(body, place.num_runs * (1 if turns is None else turns), known, set())
            )
        elif instruction.opcode == "conditional":
            branches = [program.computations[name] for name in instruction.called.values()]
            walks = [list(_walk(program, axes, dataclasses.replace(place, computation=b))) for b in branches]
            yield from max(walks, key=lambda walk: sum(c.total_bytes for c in walk), default=[])
        elif instruction.opcode in _CALLS:
            called = instruction.called
            inner = called.get("calls") or called.get("to_apply")
            if inner is not None:
                yield from _walk(program, axes, dataclasses.replace(place, computation=program.computations[inner]))
        else:
            yield from _one(program, axes, place, instruction)


def _one(program: HloProgram, axes: dict[str, int], place: _Place, made: Instruction) -> Iterator[Collective]:
    """The collective that an instruction is, if it is one, moves anything and was not counted yet."""
    kind = _kind(place.computation, made)
    chain = made.attribute(_CHAIN)
    if kind is None or (made.attribute(_CHANNEL), chain) in place.chains:
        return
    if chain is not None:
        place.chains.add((made.attribute(_CHANNEL), chain))
    spanned, group_size = _group(program, axes, made)
    if group_size == 1:
        return
    yield Collective(
        kind=kind,
        axes=spanned,
        group_size=group_size,
        num_bytes=_num_bytes(place.computation, made, kind, group_size),
        num_runs=place.num_runs,
        num_runs_known=place.num_runs_known,
        op=made.op_name,
        source=program.source_of(made),
    )


def _kind(computation: Computation, made: Instruction) -> CollectiveKind | None:
    if made.opcode == "send":
        return _TRANSFERS.get(made.attribute(_TRANSFER) or "")
    kind = _KINDS.get(made.opcode.removesuffix("-start"))
    # A TPU program writes a reduce-scatter as a fusion of an all-reduce and the slice that each device keeps.
    return "reduce_scatter" if kind == "all_reduce" and computation.name.startswith("all-reduce-scatter") else kind


def _group(program: HloProgram, axes: dict[str, int], made: Instruction) -> tuple[tuple[str, ...], int]:
    """The axes that a collective spans, and how many devices take part together."""
    if made.opcode == "send":
        return (_SLICES,), axes[_SLICES]
    # The program of several slices is that of one of them, and numbers the devices of one.
    if program.num_partitions * axes.get(_SLICES, 1) == math.prod(axes.values()):
        axes = {axis: size for axis, size in axes.items() if axis != _SLICES}
    pairs = parse_pairs(made.attributes)
    if pairs is not None:
        spanned = axes_spanned(np.array(pairs), axes) if pairs else ()
        return spanned, math.prod(axes[axis] for axis in spanned)
    groups = parse_groups(made.attributes, math.prod(axes.values()))
    if groups is None:
        raise ValueError(f"the collective {made.name} names no devices: {made.attributes[:300]}")
    return axes_spanned(groups, axes), groups.shape[1]


def _num_bytes(computation: Computation, made: Instruction, kind: CollectiveKind, group_size: int) -> int:
    read = [operand.num_bytes for operand in computation.operands_of(made)]
    if made.opcode == "send" or made.opcode.startswith(("collective-permute", "ragged-all-to-all")):
        # The other operands are a token, or a buffer to write into and offsets.
        read = read[:1]
    return sum(read) * (group_size if kind == "all_gather" else 1)
