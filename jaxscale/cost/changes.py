"""What to change where a step does not fit: each change counted again, with what it saves."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import optax
from jax.extend.core import jaxpr_as_fun

from jaxscale.cost.chips import Chip
from jaxscale.cost.estimate import StepEstimate, StepPrograms, trace_programs
from jaxscale.cost.memory import count_memory
from jaxscale.cost.placement import place
from jaxscale.cost.programs import Loss, microbatch_of
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.sharding import jaxprs
from jaxscale.sharding.derive import derive
from jaxscale.sharding.plan import ShardingPlan
from jaxscale.sharding.specs import num_parts

_MAX_CHANGES = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """One change to a step.

    Attributes:
      what: the change, as a person would say it.
      peak_bytes: of one device with it.
      saved_bytes: what that is less than without.
      fits: whether it is then within the memory of a device; None where that is not known.
    """

    what: str
    peak_bytes: int
    saved_bytes: int
    fits: bool | None


def propose_changes(
    loss: Loss,
    params: Any,
    batch: Any,
    optimizer: optax.GradientTransformation,
    plan: ShardingPlan,
    estimate: StepEstimate,
) -> tuple[Change, ...]:
    """The three changes that help most: those with which the step fits first, then those that save more.

    Tried are: replicas of the parameters that share them instead (`fsdp`), and half of `tensor` as well; twice the
    microbatches; computing the bodies of scans again in the backward pass; optimizer state in bfloat16; twice the
    devices on `fsdp`.

    Args:
      loss: a traceable function of (params, batch) that returns a scalar.
      params: a tree of arrays or `jax.ShapeDtypeStruct`.
      batch: the global batch.
      optimizer: whose state the plan has.
      plan: that was estimated.
      estimate: of that plan.
    """
    step = _Step(loss, params, batch, optimizer, plan, estimate)
    peaks = [
        *step.with_other_meshes(),
        *step.with_more_microbatches(),
        *step.with_remat(),
        *step.with_half_the_state(),
    ]
    chip = estimate.topology.chip
    changes = [_change(what, peak, estimate.memory.peak, chip) for what, peak in peaks]
    helpful = [change for change in changes if change.saved_bytes > 0]
    helpful.sort(key=lambda change: (not change.fits, -change.saved_bytes))
    return tuple(helpful[:_MAX_CHANGES])


def rematerialized(loss: Loss, params: Any, batch: Any) -> Loss:
    """The same loss, the body of each of its scans computed again in the backward pass instead of kept.

    Args:
      loss: a traceable function of (params, batch).
      params: shapes to trace it on; the result takes no others.
      batch: the same.
    """
    closed, shape = jax.make_jaxpr(loss, return_shape=True)(params, batch)
    rewritten = jaxpr_as_fun(_with_remat(closed))

    def computed_again(params: Any, batch: Any) -> Any:
        outputs = rewritten(*jax.tree.leaves((params, batch)))
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return computed_again


def _with_remat(closed: Any) -> Any:
    equations = []
    for equation in closed.eqns:
        if equation.primitive.name == "scan":
            (body,) = jaxprs.changeable(equation)
            again = jax.make_jaxpr(jax.checkpoint(jaxpr_as_fun(body)))(*body.in_avals)
            equation = jaxprs.with_changed(equation, [again])
        elif equation.primitive.name in ("jit", "pjit"):
            equation = jaxprs.with_changed(equation, [_with_remat(held) for held in jaxprs.changeable(equation)])
        equations.append(equation)
    return jaxprs.with_equations(closed, equations, jaxprs.Program(getattr(closed, "jaxpr", closed)).outputs)


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step whose changes are tried."""

    loss: Loss
    params: Any
    batch: Any
    optimizer: optax.GradientTransformation
    plan: ShardingPlan
    estimate: StepEstimate

    def with_other_meshes(self) -> Iterator[tuple[str, int]]:
        """Meshes with more devices on `fsdp`."""
        mesh = self.plan.mesh
        programs = self._programs(self.loss, self.estimate.num_microbatches)
        tried = []
        if mesh.data > 1:
            tried.append(dataclasses.replace(mesh, data=1, fsdp=mesh.fsdp * mesh.data))
        if mesh.tensor % 2 == 0:
            tried.append(dataclasses.replace(mesh, tensor=mesh.tensor // 2, fsdp=mesh.fsdp * 2))
        tried.append(dataclasses.replace(mesh, fsdp=mesh.fsdp * 2))
        for other in tried:
            more = "" if other.num_devices == mesh.num_devices else f", on {other.num_devices} devices"
            yield from self._tried(f"mesh {other}{more}", programs, other)

    def with_more_microbatches(self) -> Iterator[tuple[str, int]]:
        """Half the examples at a time."""
        number = 2 * self.estimate.num_microbatches
        batch = [leaf for leaf in self.plan.leaves if leaf.role == "batch" and leaf.shape]
        if all(leaf.shape[0] % (number * num_parts(self.plan.mesh, leaf.spec[0])) == 0 for leaf in batch):
            yield from self._tried(f"{number} microbatches", self._programs(self.loss, number), self.plan.mesh)

    def with_remat(self) -> Iterator[tuple[str, int]]:
        """Scanned layers computed again."""
        number = self.estimate.num_microbatches
        if not _has_scan(self._programs(self.loss, number)):
            return
        part = microbatch_of(self.batch, number)
        programs = self._programs(rematerialized(self.loss, self.params, part), number)
        yield from self._tried("remat: the body of each scan computed again", programs, self.plan.mesh)

    def with_half_the_state(self) -> Iterator[tuple[str, int]]:
        """Moments of two bytes a number."""
        leaves = [
            leaf for leaf in self.plan.leaves if leaf.role == "optimizer" and leaf.dtype == "float32" and leaf.shape
        ]
        saved = sum(leaf.bytes_per_device for leaf in leaves) // 2
        yield "optimizer state in bfloat16", self.estimate.memory.peak - saved

    def _tried(self, what: str, programs: StepPrograms, mesh: MeshSpec) -> Iterator[tuple[str, int]]:
        try:
            plan = self.plan
            if mesh != plan.mesh:
                plan = derive(
                    self.loss, self.params, self.batch, mesh, optimizer=self.optimizer, limits=self.plan.limits
                )
        except UsageError:
            # No plan for that mesh: the change is none.
            return
        leaves = [leaf for leaf in plan.leaves if leaf.role != "optimizer"]
        placement = place(programs.gradient, mesh, leaves)
        use = count_memory(programs.gradient, placement, plan, num_microbatches=programs.num_microbatches)
        yield what, use.peak

    def _programs(self, loss: Loss, num_microbatches: int) -> StepPrograms:
        return trace_programs(loss, self.params, self.batch, num_microbatches=num_microbatches)


def _has_scan(programs: StepPrograms) -> bool:
    return any(equation.name == "scan" for equation in programs.forward.equations)


def _change(what: str, peak: int, before: int, chip: Chip) -> Change:
    limit = chip.limit_bytes_per_device
    fits = None if limit is None else peak <= limit
    return Change(what=what, peak_bytes=peak, saved_bytes=before - peak, fits=fits)
