"""What to change where a step does not fit: each change counted again, with what it saves."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import optax
from jax.extend.core import jaxpr_as_fun

from jaxscale.cost.chips import Chip
from jaxscale.cost.estimate import StepEstimate, StepPrograms, trace_programs
from jaxscale.cost.memory import count_memory
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
      num_devices: that it takes.
    """

    what: str
    peak_bytes: int
    saved_bytes: int
    fits: bool | None
    num_devices: int


@dataclasses.dataclass(frozen=True)
class _Tried:
    what: str
    peak: int
    num_devices: int


def propose_changes(
    loss: Loss,
    params: Any,
    batch: Any,
    optimizer: optax.GradientTransformation,
    plan: ShardingPlan,
    estimate: StepEstimate,
    *,
    gather_once: bool = False,
) -> tuple[Change, ...]:
    """The three changes that help most: those with which the step fits first, on no more devices, that save more.

    Tried are: replicas of the parameters that share them instead (`fsdp`), or half of `tensor` that does; more
    microbatches, or more devices on `fsdp`, doubled until it fits; computing the bodies of scans again in the backward
    pass; no copies of weights gathered once for all microbatches; optimizer state in bfloat16.

    Args:
      loss: a traceable function of (params, batch) that returns a scalar.
      params: a tree of arrays or `jax.ShapeDtypeStruct`.
      batch: the global batch.
      optimizer: whose state the plan has.
      plan: that was estimated.
      estimate: of that plan.
      gather_once: whether microbatches share weights that are gathered once, where there are several.
    """
    step = _Step(loss, params, batch, optimizer, plan, estimate, gather_once)
    peaks = [
        *step.with_other_meshes(),
        *step.with_more_microbatches(),
        *step.with_remat(),
        *step.with_weights_gathered_again(),
        *step.with_half_the_state(),
    ]
    chip = estimate.topology.chip
    changes = [_change(tried, estimate.memory.peak, chip) for tried in peaks]
    helpful = [change for change in changes if change.saved_bytes > 0]
    helpful.sort(key=lambda change: (not change.fits, change.num_devices, -change.saved_bytes))
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
    gather_once: bool

    def with_other_meshes(self) -> Iterator[_Tried]:
        """Meshes of as many devices with more of them on `fsdp`, and the fewest more devices with which it fits."""
        mesh, programs = self.plan.mesh, self._programs(self.loss, self.estimate.num_microbatches)
        if mesh.data > 1:
            other = dataclasses.replace(mesh, data=1, fsdp=mesh.fsdp * mesh.data)
            yield from self._tried(f"mesh {other}", programs, other)
        if mesh.tensor % 2 == 0:
            other = dataclasses.replace(mesh, tensor=mesh.tensor // 2, fsdp=mesh.fsdp * 2)
            yield from self._tried(f"mesh {other}", programs, other)
        larger = (dataclasses.replace(mesh, fsdp=mesh.fsdp * 2**n) for n in itertools.count(1))
        yield from self._first_that_fits(
            self._tried(f"mesh {other}, on {other.num_devices} devices", programs, other) for other in larger
        )

    def with_more_microbatches(self) -> Iterator[_Tried]:
        """The fewest microbatches with which it fits."""
        specs = [leaf.spec for leaf in self.plan.leaves if leaf.role == "batch" and leaf.shape]
        num_examples = {leaf.shape[0] for leaf in jax.tree.leaves(self.batch) if leaf.shape}

        def tried(number: int) -> Iterator[_Tried]:
            ways = {number * num_parts(self.plan.mesh, spec[0]) for spec in specs}
            if all(examples % n == 0 for examples in num_examples for n in ways):
                yield from self._tried(f"{number} microbatches", self._programs(self.loss, number), self.plan.mesh)

        numbers = (self.estimate.num_microbatches * 2**n for n in itertools.count(1))
        yield from self._first_that_fits(map(tried, numbers))

    def _first_that_fits(self, tries: Iterable[Iterator[_Tried]]) -> Iterator[_Tried]:
        """The first of ever larger changes with which the step fits, or the last that is possible and still helps."""
        limit, best = self.estimate.topology.chip.limit_bytes_per_device, None
        for found in tries:
            change = next(found, None)
            if change is None or (best is not None and change.peak >= best.peak):
                break
            best = change
            if limit is None or change.peak <= limit:
                break
        if best is not None:
            yield best

    def with_remat(self) -> Iterator[_Tried]:
        """Scanned layers computed again."""
        number = self.estimate.num_microbatches
        if not _has_scan(self._programs(self.loss, number)):
            return
        part = microbatch_of(self.batch, number)
        programs = self._programs(rematerialized(self.loss, self.params, part), number)
        yield from self._tried("remat: the body of each scan computed again", programs, self.plan.mesh)

    def with_weights_gathered_again(self) -> Iterator[_Tried]:
        """No copies of the weights."""
        if self.estimate.gathered_bytes:
            programs = self._programs(self.loss, self.estimate.num_microbatches)
            again = dataclasses.replace(programs, gather_once=False)
            yield from self._tried("weights gathered in every microbatch", again, self.plan.mesh)

    def with_half_the_state(self) -> Iterator[_Tried]:
        """Moments of two bytes a number."""
        leaves = [
            leaf for leaf in self.plan.leaves if leaf.role == "optimizer" and leaf.dtype == "float32" and leaf.shape
        ]
        saved = sum(leaf.bytes_per_device for leaf in leaves) // 2
        peak = self.estimate.memory.peak - saved
        yield _Tried("optimizer state in bfloat16", peak, self.plan.mesh.num_devices)

    def _tried(self, what: str, programs: StepPrograms, mesh: MeshSpec) -> Iterator[_Tried]:
        try:
            plan = self.plan
            if mesh != plan.mesh:
                part = microbatch_of(self.batch, programs.num_microbatches)
                plan = derive(self.loss, self.params, part, mesh, optimizer=self.optimizer, limits=self.plan.limits)
        except UsageError:
            # No plan for that mesh: the change is none.
            return
        placement = programs.place(plan)
        use = count_memory(programs.gradient, placement, plan, num_microbatches=programs.num_microbatches)
        yield _Tried(what, use.peak, mesh.num_devices)

    def _programs(self, loss: Loss, num_microbatches: int) -> StepPrograms:
        return trace_programs(
            loss, self.params, self.batch, num_microbatches=num_microbatches, gather_once=self.gather_once
        )


def _has_scan(programs: StepPrograms) -> bool:
    return any(equation.name == "scan" for equation in programs.forward.equations)


def _change(tried: _Tried, before: int, chip: Chip) -> Change:
    limit = chip.limit_bytes_per_device
    return Change(
        what=tried.what,
        peak_bytes=tried.peak,
        saved_bytes=before - tried.peak,
        fits=None if limit is None else tried.peak <= limit,
        num_devices=tried.num_devices,
    )
