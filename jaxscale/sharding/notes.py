"""What a walk through a program notes of its operations, and the graph that the notes make at the end.

Factors may still be split and linked while the walk goes on, so notes hold dims as they were; only `graph` puts them
in terms of the factors that are left.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

from jaxscale.sharding.factors import Dim, Dims, Factors
from jaxscale.sharding.graph import (
    Activation,
    Concatenation,
    Constant,
    Contraction,
    Graph,
    Kind,
    Leaf,
    NotUnderstood,
    OnParts,
    Operand,
    Reduction,
)
from jaxscale.sharding.jaxprs import Address, Equation
from jaxscale.sharding.primitives import Value, num_elements


@dataclasses.dataclass(frozen=True)
class _Contracted:
    left: Value
    right: Value
    contracted: tuple[Dim, ...]
    batch: tuple[Dim, ...]
    num_outputs: int
    num_runs: int
    address: Address
    source: str
    is_manual: bool
    is_recomputed: bool


@dataclasses.dataclass(frozen=True)
class _Reduced:
    dims: tuple[Dim, ...]
    num_outputs: int
    num_runs: int


@dataclasses.dataclass(frozen=True)
class _LookedUp:
    dim: Dim
    of_data: bool


@dataclasses.dataclass(frozen=True)
class _Scanned:
    dim: Dim


@dataclasses.dataclass(frozen=True)
class _Routed:
    dim: Dim


@dataclasses.dataclass(frozen=True)
class _Made:
    """A result that can be told where to live."""

    kind: Kind
    address: Address
    output: int
    shape: tuple[int, ...]
    dims: Dims
    of: _Contracted | None = None
    indexed: tuple[Dim, ...] = ()


@dataclasses.dataclass(frozen=True)
class _OnParts:
    """A function that may be computed on parts."""

    address: Address
    dims: str
    operands: tuple[Value, ...]
    source: str


@dataclasses.dataclass(frozen=True)
class _Joined:
    dim: Dim
    parts: tuple[Dim, ...]
    starts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Cut:
    value: int
    axis: int
    dim: Dim
    start: int
    stride: int
    part: Dim


@dataclasses.dataclass(frozen=True)
class _Unknown:
    primitive: str
    source: str
    dims: Dims


_Note = _Contracted | _Reduced | _LookedUp | _Scanned | _Routed | _Made | _OnParts | _Joined | _Cut | _Unknown
_N = TypeVar("_N")


class Notes:
    """The notes of one walk; the recorder that the primitives' rules see."""

    def __init__(self) -> None:
        self.factors = Factors()
        # How often in a step the operations noted now are run: the product of the scans around them.
        self.num_runs = 1
        # Where the operation noted now stands, the user's line that made it, whether it can be pinned there, whether a
        # `shard_map` holds it, and whether the backward pass computes it again.
        self.address: Address = ()
        self.source: Callable[[], str] = str
        self.is_inside_custom = False
        self.is_inside_manual = False
        self.is_recomputed = False
        self._notes: list[_Note] = []

    def __len__(self) -> int:
        return len(self._notes)

    def forget_after(self, length: int) -> None:
        """Drops what was noted since there were `length` notes; links stay."""
        del self._notes[length:]

    def contraction(
        self, equation: Equation, left: Value, right: Value, contracted: Sequence[Dim], batch: Sequence[Dim]
    ) -> None:
        """Notes a contraction of two operands over `contracted`, in step over `batch`."""
        num_outputs = num_elements(equation.output_shapes[0])
        self._notes.append(
            _Contracted(
                left,
                right,
                tuple(contracted),
                tuple(batch),
                num_outputs,
                self.num_runs,
                self.address,
                self.source(),
                self.is_inside_manual,
                self.is_recomputed,
            )
        )

    def reduction(self, equation: Equation, operand: Value, axes: Sequence[int]) -> None:
        """Notes a reduction of `operand` over `axes`, where it depends on the batch."""
        if operand.is_data:
            num_outputs = num_elements(equation.output_shapes[0])
            self._notes.append(_Reduced(tuple(operand.dims[axis] for axis in axes), num_outputs, self.num_runs))

    def lookup(self, dim: Dim, *, of_data: bool = False) -> None:
        """Notes that `dim` is indexed by something that depends on the batch, and whether it is one of such itself."""
        self._notes.append(_LookedUp(dim, of_data))

    def route(self, dim: Dim) -> None:
        """Notes that the batch decides where along `dim` something goes."""
        self._notes.append(_Routed(dim))

    def join(self, dim: Dim, parts: Sequence[Dim], starts: Sequence[int]) -> None:
        """Notes that `dim` is the concatenation of `parts`."""
        self._notes.append(_Joined(dim, tuple(parts), tuple(starts)))

    def cut(self, operand: Value, axis: int, start: int, stride: int, part: Dim) -> None:
        """Notes that `part` is a slice of the operand's dim `axis`."""
        self._notes.append(_Cut(operand.number, axis, operand.dims[axis], start, stride, part))

    def made(self, kind: Kind, values: Sequence[Value], since: int) -> None:
        """Notes that `values` are the outputs of an operation, noted after there were `since` notes, of the kind given.

        What does not depend on the batch is not kept, nor what is called a contraction and contracts nothing, nor a
        boundary with no contraction inside.
        """
        found = self._notes[since:]
        contractions = [note for note in found if isinstance(note, _Contracted)]
        if self.is_inside_custom or (kind in ("contraction", "boundary") and not contractions):
            return
        contraction = contractions[0] if len(contractions) == 1 else None
        indexed = tuple(note.dim for note in found if isinstance(note, _LookedUp | _Routed))
        self._notes += [
            _Made(kind, self.address, i, value.shape, value.dims, contraction, indexed)
            for i, value in enumerate(values)
            if value.is_data and value.shape
        ]

    def on_parts(self, dims: str, operands: Sequence[Value], source: str) -> None:
        """Notes a function that devices may compute on their own parts, where its equation can be replaced."""
        if not self.is_inside_custom:
            self._notes.append(_OnParts(self.address, dims, tuple(operands), source))

    def scan(self, dim: Dim) -> None:
        """Notes that a scan goes through `dim` one by one."""
        self._notes.append(_Scanned(dim))

    def unknown(self, primitive: str, source: str, dims: Dims) -> None:
        """Notes a primitive that no rule understands, the user's line that made it, and the dims of its outputs."""
        self._notes.append(_Unknown(primitive, source, dims))

    def graph(self, leaves: Sequence[Leaf], constants: tuple[Constant, ...] = ()) -> Graph:
        """The graph of `leaves` and of all that was noted.

        Args:
          leaves: with their dims as they were when the walk began.
          constants: arrays that the program closes over.
        """
        leaves = [
            dataclasses.replace(leaf, dims=tuple(self.factors.resolve(dim) for dim in leaf.dims)) for leaf in leaves
        ]
        contracted = self._of(_Contracted)
        contractions = [self._contraction(note) for note in contracted]
        numbers = {id(note): i for i, note in enumerate(contracted)}
        activations = [self._activation(note, numbers) for note in self._of(_Made)]
        dims = [dim for leaf in leaves for dim in leaf.dims] + [dim for made in activations for dim in made.dims]
        concatenations, slices = self._concatenations(), self._slices()
        functions = tuple(self._function(note) for note in self._of(_OnParts))
        dims += [dim for function in functions for operand in function.operands for dim in operand]
        dims += [dim for c in concatenations for dim in (c.dim, *c.parts)] + [dim for pair in slices for dim in pair]
        factors = {f for dim in dims for f in dim}.union(*(c.factors for c in contractions))
        return Graph(
            leaves=tuple(leaves),
            sizes={factor: self.factors.size(factor) for factor in sorted(factors)},
            contractions=tuple(contractions),
            reductions=tuple(
                Reduction(reduced=self._union(note.dims), num_outputs=note.num_outputs, num_runs=note.num_runs)
                for note in self._of(_Reduced)
            ),
            scanned=self._union([note.dim for note in self._of(_Scanned)]),
            looked_up=self._looked_up(leaves),
            not_understood=_not_understood(self._of(_Unknown)),
            routed=self._union([note.dim for note in self._of(_Routed)]),
            activations=tuple(activations),
            concatenations=concatenations,
            on_parts=functions,
            constants=constants,
            unknown=self._union([dim for note in self._of(_Unknown) for dim in note.dims]),
            slices=slices,
        )

    def _looked_up(self, leaves: Sequence[Leaf]) -> frozenset[int]:
        """What lookups index; of data (scores, by their target) only what a parameter has and the batch has not."""
        of_role: dict[str, set[int]] = {"parameter": set(), "batch": set(), "optimizer": set()}
        for leaf in leaves:
            of_role[leaf.role].update(factor for dim in leaf.dims for factor in dim)
        of_data = self._union([note.dim for note in self._of(_LookedUp) if note.of_data])
        of_parameters = self._union([note.dim for note in self._of(_LookedUp) if not note.of_data])
        return of_parameters | (of_data & (of_role["parameter"] - of_role["batch"]))

    def _of(self, kind: type[_N]) -> list[_N]:
        return [note for note in self._notes if isinstance(note, kind)]

    def _activation(self, note: _Made, numbers: dict[int, int]) -> Activation:
        return Activation(
            kind=note.kind,
            address=note.address,
            output=note.output,
            shape=note.shape,
            dims=self._resolved(note.dims),
            contraction=numbers[id(note.of)] if note.of else None,
            indexed=self._union(note.indexed),
        )

    def _function(self, note: _OnParts) -> OnParts:
        return OnParts(
            address=note.address,
            dims=note.dims,
            operands=tuple(self._resolved(value.dims) for value in note.operands),
            parameters=tuple(value.origins for value in note.operands),
            source=note.source,
        )

    def _concatenations(self) -> tuple[Concatenation, ...]:
        joined = [(note.dim, note.parts, note.starts) for note in self._of(_Joined)]
        cuts: dict[tuple[int, int], dict[int, _Cut]] = collections.defaultdict(dict)
        for note in self._of(_Cut):
            cuts[note.value, note.axis].setdefault(note.start, note)
        for found in cuts.values():
            ordered = [found[start] for start in sorted(found)]
            end = 0
            for note in ordered:
                end = end + self.factors.dim_size(note.part) if note.start == end and note.stride == 1 else -1
            if len(ordered) > 1 and end == self.factors.dim_size(ordered[0].dim):
                joined.append((ordered[0].dim, tuple(n.part for n in ordered), tuple(n.start for n in ordered)))
        return tuple(
            Concatenation(dim=self.factors.resolve(dim), parts=self._resolved(parts), starts=starts)
            for dim, parts, starts in dict.fromkeys(joined)
        )

    def _slices(self) -> tuple[tuple[Dim, Dim], ...]:
        pairs = [(note.dim, note.part) for note in self._of(_Cut)]
        pairs += [(note.dim, part) for note in self._of(_Joined) for part in note.parts]
        resolved = ((self.factors.resolve(whole), self.factors.resolve(part)) for whole, part in pairs)
        return tuple(dict.fromkeys(pair for pair in resolved if pair[0] != pair[1]))

    def _contraction(self, note: _Contracted) -> Contraction:
        contracted, batch = self._joined(note.contracted), self._joined(note.batch)

        def operand(value: Value) -> Operand:
            free = tuple(f for f in self._joined(value.dims) if f not in {*contracted, *batch})
            return Operand(
                value=value.number,
                is_data=value.is_data,
                num_elements=num_elements(value.shape),
                parameters=value.origins,
                free=free,
                shape=value.shape,
                dims=self._resolved(value.dims),
                made_by=value.made_by,
            )

        depth = num_elements(tuple(self.factors.dim_size(dim) for dim in note.contracted))
        return Contraction(
            left=operand(note.left),
            right=operand(note.right),
            contracted=contracted,
            batch=batch,
            num_outputs=note.num_outputs,
            num_flops=2 * note.num_outputs * depth,
            num_runs=note.num_runs,
            address=note.address,
            source=note.source,
            is_manual=note.is_manual,
            is_recomputed=note.is_recomputed,
        )

    def _resolved(self, dims: Dims) -> Dims:
        return tuple(self.factors.resolve(dim) for dim in dims)

    def _joined(self, dims: Sequence[Dim]) -> Dim:
        return tuple(factor for dim in dims for factor in self.factors.resolve(dim))

    def _union(self, dims: Sequence[Dim]) -> frozenset[int]:
        return frozenset(self._joined(dims))


def _not_understood(notes: Sequence[_Unknown]) -> tuple[NotUnderstood, ...]:
    by_name: dict[str, list[_Unknown]] = collections.defaultdict(list)
    for note in notes:
        by_name[note.primitive].append(note)
    return tuple(
        NotUnderstood(primitive=name, count=len(found), source=found[0].source)
        for name, found in sorted(by_name.items())
    )
