"""What a search over meshes and settings chooses from, and what it finds."""

import dataclasses
from typing import Any

from jaxscale.cost.chips import Topology
from jaxscale.cost.roofline import StepBound
from jaxscale.mesh import MeshSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is chosen of a step besides its mesh.

    Attributes:
      remat: what the backward pass computes again, in the caller's words.
      num_microbatches: of a step.
      optimizer_dtype: of what the optimizer can keep less precisely, in the caller's words.
    """

    remat: str
    num_microbatches: int
    optimizer_dtype: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """What may be chosen from.

    Attributes:
      axes: of the mesh; `sequence` is tried only where nothing fits without it.
      remats: in the words of `Settings`, those that keep least first.
      optimizer_dtypes: the same, the most precise first.
      num_microbatches: the only number to try; None for every number that divides the batch.
    """

    axes: tuple[str, ...] = ("data", "fsdp", "sequence", "tensor")
    remats: tuple[str, ...]
    optimizer_dtypes: tuple[str, ...]
    num_microbatches: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to run the step, and what it costs as predicted.

    Attributes:
      mesh: how the devices are used.
      settings: of the step.
      peak_bytes: of one device's memory.
      bytes_sent: by one device in a step.
      flops: of one device in a step.
      bound: on a step's time.
      tokens_per_s: at most; None where a figure of the chip is missing.
    """

    mesh: MeshSpec
    settings: Settings
    peak_bytes: int
    bytes_sent: float
    flops: int
    bound: StepBound
    tokens_per_s: float | None

    @property
    def step_s(self) -> float | None:
        """The step's time where half of what could overlap does; None where a figure of the chip is missing."""
        return step_time(self.bound)

    @property
    def rank(self) -> tuple[Any, ...]:
        """The smaller, the better: the step's time; of a chip without figures FLOPs, and then bytes sent.

        What is left equal is decided by memory, and then by the mesh's name.
        """
        cost = (self.flops, self.bytes_sent) if self.step_s is None else (self.step_s,)
        return (*cost, self.peak_bytes, str(self.mesh), self.settings.remat)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
    """Pairs of a mesh and a remat that are no candidates, for one reason.

    Attributes:
      why: the reason.
      count: of the pairs.
      example: one of them, in the words of what refused it.
    """

    why: str
    count: int
    example: str

    def more(self, count: int) -> "Refusal":
        """The same for so many more pairs."""
        return dataclasses.replace(self, count=self.count + count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """What was found on one topology.

    Attributes:
      topology: the devices.
      ranking: every candidate that fits, the best first.
      closest: of those that do not fit, the one that needs least memory; None where one fits or none could be counted.
      refusals: why the others are no candidates.
      num_estimates: how many steps were counted.
    """

    topology: Topology
    ranking: tuple[Candidate, ...]
    closest: Candidate | None
    refusals: tuple[Refusal, ...]
    num_estimates: int

    @property
    def best(self) -> Candidate | None:
        """The first of the ranking."""
        return self.ranking[0] if self.ranking else None


def step_time(bound: StepBound) -> float | None:
    """The mean of a step's bounds with and without overlap, as if half of what could overlap did.

    With all of it hidden, a mesh that sends four times as much may look a little faster; with none, weights that are
    gathered ahead of time look dear. Neither is what happens.
    """
    if bound.overlapped_s is None or bound.serial_s is None:
        return None
    return (bound.overlapped_s + bound.serial_s) / 2
