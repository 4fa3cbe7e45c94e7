"""What a walk through a program notes of its operations, and the graph that the notes make at the end.

Factors may still be split and linked while the walk goes on, so notes hold dims as they were; only `graph` puts them
in terms of the factors that are left.
"""

import collections
import dataclasses
from collections.abc import Sequence

from jaxscale.sharding.factors import Dim, Factors
from jaxscale.sharding.graph import Contraction, Graph, Leaf, NotUnderstood, Operand, Reduction
from jaxscale.sharding.jaxprs import Equation
from jaxscale.sharding.primitives import Value, num_elements


@dataclasses.dataclass(frozen=True)
class _Contracted:
    left: Value
    right: Value
    contracted: tuple[Dim, ...]
    batch: tuple[Dim, ...]
    num_outputs: int
    num_runs: int


@dataclasses.dataclass(frozen=True)
class _Reduced:
    dims: tuple[Dim, ...]
    num_outputs: int
    num_runs: int


@dataclasses.dataclass(frozen=True)
class _LookedUp:
    dim: Dim


@dataclasses.dataclass(frozen=True)
class _Scanned:
    dim: Dim


@dataclasses.dataclass(frozen=True)
class _Unknown:
    primitive: str
    source: str


class Notes:
    """The notes of one walk; the recorder that the primitives' rules see."""

    def __init__(self) -> None:
        self.factors = Factors()
        # How often in a step the operations noted now are run: the product of the scans around them.
        self.num_runs = 1
        self._notes: list[_Contracted | _Reduced | _LookedUp | _Scanned | _Unknown] = []

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
        self._notes.append(_Contracted(left, right, tuple(contracted), tuple(batch), num_outputs, self.num_runs))

    def reduction(self, equation: Equation, operand: Value, axes: Sequence[int]) -> None:
        """Notes a reduction of `operand` over `axes`, where it depends on the batch."""
        if operand.is_data:
            num_outputs = num_elements(equation.output_shapes[0])
            self._notes.append(_Reduced(tuple(operand.dims[axis] for axis in axes), num_outputs, self.num_runs))

    def lookup(self, dim: Dim) -> None:
        """Notes that `dim` is indexed by something that depends on the batch."""
        self._notes.append(_LookedUp(dim))

    def scan(self, dim: Dim) -> None:
        """Notes that a scan goes through `dim` one by one."""
        self._notes.append(_Scanned(dim))

    def unknown(self, primitive: str, source: str) -> None:
        """Notes a primitive that no rule understands, and the user's line that made it."""
        self._notes.append(_Unknown(primitive, source))

    def graph(self, leaves: Sequence[Leaf]) -> Graph:
        """The graph of `leaves` and of all that was noted.

        Args:
          leaves: with their dims as they were when the walk began.
        """
        leaves = [
            dataclasses.replace(leaf, dims=tuple(self.factors.resolve(dim) for dim in leaf.dims)) for leaf in leaves
        ]
        contractions = [self._contraction(note) for note in self._notes if isinstance(note, _Contracted)]
        factors = {f for leaf in leaves for dim in leaf.dims for f in dim}.union(*(c.factors for c in contractions))
        return Graph(
            leaves=tuple(leaves),
            sizes={factor: self.factors.size(factor) for factor in sorted(factors)},
            contractions=tuple(contractions),
            reductions=tuple(
                Reduction(reduced=self._union(note.dims), num_outputs=note.num_outputs, num_runs=note.num_runs)
                for note in self._notes
                if isinstance(note, _Reduced)
            ),
            scanned=self._union([note.dim for note in self._notes if isinstance(note, _Scanned)]),
            looked_up=self._union([note.dim for note in self._notes if isinstance(note, _LookedUp)]),
            not_understood=_not_understood([note for note in self._notes if isinstance(note, _Unknown)]),
        )

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
        )

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
