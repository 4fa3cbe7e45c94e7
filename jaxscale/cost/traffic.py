"""What a step moves, as data: collectives by kind, mesh axes and network, with the bytes that each device sends."""

import collections
import dataclasses
from typing import Literal

from jaxscale.cost.rings import CollectiveKind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """All collectives of one kind over one set of axes that one line of a program makes in a step.

    Attributes:
      kind: of collective.
      axes: whose devices take part, slowest network first.
      network: what the axes run over.
      num_runs: in a step.
      num_bytes: of the array, per device and run, in the sense of `ring_bytes`.
      bytes_moved: that each device sends in a step, in all runs.
      source: the user's line.
    """

    kind: CollectiveKind
    axes: tuple[str, ...]
    network: Literal["ici", "dcn"]
    num_runs: int
    num_bytes: int
    bytes_moved: float
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """Everything that a step moves, most bytes first."""

    collectives: tuple[Collective, ...]

    def bytes_moved(
        self, *, kind: CollectiveKind | None = None, axes: tuple[str, ...] | None = None, network: str | None = None
    ) -> float:
        """What each device sends in a step, of one kind, over one set of axes, over one network; None for all."""
        return sum(
            c.bytes_moved
            for c in self.collectives
            if kind in (None, c.kind) and axes in (None, c.axes) and network in (None, c.network)
        )

    @property
    def by_kind_and_axes(self) -> dict[tuple[CollectiveKind, tuple[str, ...]], float]:
        """Bytes that each device sends in a step."""
        totals: dict[tuple[CollectiveKind, tuple[str, ...]], float] = collections.defaultdict(float)
        for c in self.collectives:
            totals[(c.kind, c.axes)] += c.bytes_moved
        return dict(totals)

    def __add__(self, other: "Traffic") -> "Traffic":
        """Both."""
        found = (*self.collectives, *other.collectives)
        return Traffic(collectives=tuple(sorted(found, key=lambda c: -c.bytes_moved)))

    def times(self, number: int) -> "Traffic":
        """The traffic of as many microbatches."""
        return Traffic(
            collectives=tuple(
                dataclasses.replace(c, num_runs=c.num_runs * number, bytes_moved=c.bytes_moved * number)
                for c in self.collectives
            )
        )
