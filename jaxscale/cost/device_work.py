"""What one device computes and moves through its memory in a pass of a program, split as the plan has it."""

import collections
import dataclasses
from typing import Any

from jaxscale.cost.flops import contraction_flops
from jaxscale.cost.placement import Placement
from jaxscale.frozen import FROZEN
from jaxscale.mesh import axis_of
from jaxscale.sharding import jaxprs
from jaxscale.sharding.jaxprs import Address, Branches, Call, Equation, Program, Scan, While
from jaxscale.sharding.plan import ShardingPlan
from jaxscale.sharding.specs import DimAxes

# Operations that read their operands from memory and write their results; all others are fused with these.
_NAMES = """concatenate conv_general_dilated cumsum dot_general gather ragged_dot ragged_dot_general reduce_max
reduce_sum
scatter scatter-add scatter_add sort top_k"""
_THROUGH_MEMORY = frozenset(_NAMES.split())


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceWork:
    """The work of one device.

    Attributes:
      flops: of contractions, by the dtype of their operands; work that several devices do counts on each of them.
      hbm_bytes: operands and results of contractions, reductions, lookups and the like. Operations on elements are
        taken as fused with them, so it is a lower bound.
    """

    flops: dict[str, int]
    hbm_bytes: int

    def times(self, number: int) -> "DeviceWork":
        """The work of as many microbatches."""
        return DeviceWork(
            flops={dtype: flops * number for dtype, flops in self.flops.items()}, hbm_bytes=self.hbm_bytes * number
        )


def count_device_work(program: Program, placement: Placement) -> DeviceWork:
    """What one device computes, and reads and writes, in a program; scans times their length.

    Args:
      program: of a loss, or of its value and gradient.
      placement: of the same program.
    """
    walk = _Walk(placement)
    walk.run(program, (), 1)
    return DeviceWork(flops=dict(sorted(walk.flops.items())), hbm_bytes=walk.hbm_bytes)


def update_hbm_bytes(plan: ShardingPlan) -> int:
    """What the optimizer's update moves: parameters and state are read and written, gradients read; no frozen ones."""
    parameters, state = (plan.total_bytes_per_device(role) for role in ("parameter", "optimizer"))
    held = (leaf for leaf in plan.leaves if leaf.role == "parameter" and leaf.path.startswith(f"{FROZEN}/"))
    return 3 * (parameters - sum(leaf.bytes_per_device for leaf in held)) + 2 * state


class _Walk:
    def __init__(self, placement: Placement):
        self.flops: collections.Counter[str] = collections.Counter()
        self.hbm_bytes = 0
        self._placement = placement

    def run(self, program: Program, path: Address, num_runs: int) -> None:
        for position, equation in enumerate(program.equations):
            self._count(equation, path, (*path, position), num_runs)

    def _count(self, equation: Equation, path: Address, inner_path: Address, num_runs: int) -> None:
        match jaxprs.inner(equation):
            case Scan(body=body, length=length):
                self.run(body, inner_path, num_runs * length)
            case While(body=body):
                self.run(body, inner_path, num_runs)
            case Call(program):
                self.run(program, inner_path, num_runs)
            case Branches(branches):
                self._count_largest(branches, inner_path, num_runs)
            case None if equation.name in _THROUGH_MEMORY:
                variables = (*equation.inputs, *equation.outputs)
                self.hbm_bytes += num_runs * sum(self._placement.bytes_of(path, v) for v in variables)
                flops = contraction_flops(equation)
                if flops:
                    ways = self._placement.ways(self._axes(path, variables))
                    self.flops[str(equation.inputs[0].aval.dtype)] += num_runs * flops // ways

    def _count_largest(self, branches: tuple[Program, ...], path: Address, num_runs: int) -> None:
        walks = []
        for i, branch in enumerate(branches):
            walk = _Walk(self._placement)
            walk.run(branch, (*path, i), num_runs)
            walks.append(walk)
        largest = max(walks, key=lambda walk: (sum(walk.flops.values()), walk.hbm_bytes))
        self.flops.update(largest.flops)
        self.hbm_bytes += largest.hbm_bytes

    def _axes(self, path: Address, variables: tuple[Any, ...]) -> DimAxes:
        """The axes that split the work: each once, wherever it is found first."""
        found: dict[str, set[str]] = {}
        for variable in variables:
            mine: dict[str, set[str]] = collections.defaultdict(set)
            for axis in self._placement.split(path, variable).axes:
                mine[axis_of(axis)].add(axis)
            for axis, parts in mine.items():
                known = found.get(axis, set())
                if not known or self._placement.ways(tuple(parts)) > self._placement.ways(tuple(known)):
                    found[axis] = parts
        return tuple(part for parts in found.values() for part in parts)
