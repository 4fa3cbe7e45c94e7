"""Searches meshes, remat, microbatches and the optimizer's precision for the fastest step that fits, by the cost model.

Nothing is compiled and nothing runs. For every mesh and remat only the fewest microbatches with which the step fits are
a candidate: more of them compute the same, gather the weights more often, and so are never faster. A less precise
optimizer is one only where it makes the step fit, or faster.
"""

import bisect
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import optax

from jaxscale.cost.chips import Topology
from jaxscale.cost.estimate import StepEstimate, StepPrograms, estimate_step, trace_programs
from jaxscale.cost.programs import Loss, microbatch_of
from jaxscale.cost.tune_candidates import Candidate, Refusal, Search, Settings, Space
from jaxscale.cost.tune_shapes import meshes_of, smaller_topologies
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.sharding import guard
from jaxscale.sharding.derive import plan_of
from jaxscale.sharding.graph import Graph
from jaxscale.sharding.limits import DEFAULT_LIMITS
from jaxscale.sharding.plan import ShardingPlan
from jaxscale.sharding.specs import BATCH_AXES
from jaxscale.sharding.trace import trace_step

# A less precise optimizer has to be worth it: this much faster.
_WORTHWHILE = 0.01
# A mesh that splits positions is tried only where none fits that does not: it gathers keys and values in every layer.
_LAST_RESORT = "sequence"


class Step(Protocol):
    """What is asked of a training step; `jaxscale.train.planned_step.PlannedStep` is one."""

    @property
    def loss(self) -> Loss:
        """A traceable function of (params, batch) that returns a scalar."""
        ...

    @property
    def params(self) -> Any:
        """A tree of arrays or `jax.ShapeDtypeStruct`."""
        ...

    @property
    def batch(self) -> Any:
        """The global batch, a tree of the same."""
        ...

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Whose state goes along."""
        ...

    @property
    def num_tokens(self) -> int:
        """Of the global batch."""
        ...


class Tuner:
    """Searches topologies for one step; what was traced for one is kept for the next."""

    def __init__(self, step_of: Callable[[Settings], Step], space: Space):
        """Takes a step in all its variants.

        Args:
          step_of: the step with some settings; an UsageError of it refuses them.
          space: what may be chosen.
        """
        self._space = space
        self._step_of = step_of
        self._programs: dict[tuple[str, int], StepPrograms] = {}
        self._graphs: dict[Settings, Graph] = {}
        self._steps: dict[Settings, Step] = {}
        self._first = Settings(
            remat=space.remats[0],
            num_microbatches=space.num_microbatches or 1,
            optimizer_dtype=space.optimizer_dtypes[0],
        )
        self._num_examples = _num_examples(step_of(self._first).batch)

    def search(self, topology: Topology) -> Search:
        """Every mesh of a topology with the best settings for it, ranked.

        Args:
          topology: the devices, all of which are used.

        Raises:
          UsageError: the step can't be made with the first settings of the space.
        """
        axes = [axis for axis in self._space.axes if axis != _LAST_RESORT]
        tried = _Tried(topology)
        for mesh in meshes_of(topology, axes):
            self._try_mesh(mesh, tried)
        if not tried.fitting and _LAST_RESORT in self._space.axes:
            for mesh in meshes_of(topology, self._space.axes):
                if mesh.sequence > 1:
                    self._try_mesh(mesh, tried)
        return tried.result()

    def smallest(self, topology: Topology) -> Search | None:
        """The smallest slice of the same chip with which the step fits; None where no smaller one than this does.

        Args:
          topology: the devices that there are.
        """
        if topology.chip.limit_bytes_per_device is None:
            return None
        found = (self.search(smaller) for smaller in smaller_topologies(topology))
        return next((search for search in found if search.ranking), None)

    def estimate(self, mesh: MeshSpec, settings: Settings, topology: Topology) -> StepEstimate:
        """What one combination costs.

        Args:
          mesh: of all devices.
          settings: of the step.
          topology: the devices.

        Raises:
          UsageError: the mesh does not suit the step, or the settings do not.
        """
        return self._estimate(self._plan(mesh, settings), settings, topology)

    def next_smaller(self, candidate: Candidate, topology: Topology) -> Candidate | None:
        """The same with the next larger number of microbatches; None where there is none.

        Args:
          candidate: of the ranking, which the compiler found too large.
          topology: the devices.
        """
        settings = candidate.settings
        numbers = self._numbers_of_microbatches(candidate.mesh)
        more = [number for number in numbers if number > settings.num_microbatches]
        if not more:
            return None
        settings = dataclasses.replace(settings, num_microbatches=more[0])
        return _candidate(self.estimate(candidate.mesh, settings, topology), settings)

    def _try_mesh(self, mesh: MeshSpec, tried: "_Tried") -> None:
        """Finds a candidate for every remat; what does not fit with one does not with those that keep more."""
        numbers, remats = self._numbers_of_microbatches(mesh), self._space.remats
        if not numbers:
            tried.refuse("the batch does not divide", f"{self._num_examples} examples on {mesh}", len(remats))
            return
        for i, remat in enumerate(remats):
            try:
                best, fewest = self._best_of(mesh, remat, numbers, tried)
            except UsageError as error:
                tried.refuse("refused by the guard", " ".join(str(error).split()), len(remats) - i)
                return
            if best is None:
                tried.refuse("does not fit with any number of microbatches", f"{mesh}, remat {remat}", len(remats) - i)
                return
            tried.fitting.append(best)
            numbers = [number for number in numbers if number >= fewest]

    def _best_of(
        self, mesh: MeshSpec, remat: str, numbers: Sequence[int], tried: "_Tried"
    ) -> tuple[Candidate | None, int]:
        """The best over all precisions, and the fewest microbatches that fit with any of them."""
        best: Candidate | None = None
        fewest = numbers[-1]
        for dtype in self._space.optimizer_dtypes:
            if best is not None and not _could_gain(best, numbers):
                break
            found = self._fewest_that_fit(mesh, remat, dtype, numbers, tried)
            if found is None:
                continue
            fewest = found.settings.num_microbatches
            numbers = [number for number in numbers if number <= fewest]
            if best is None or _is_worthwhile(found, best):
                best = found
        return best, fewest

    def _numbers_of_microbatches(self, mesh: MeshSpec) -> list[int]:
        """Every number that cuts the batch into microbatches whose examples divide, in ascending order."""
        ways = math.prod(mesh.sizes[axis] for axis in BATCH_AXES)
        if self._num_examples % ways:
            return []
        per_device = self._num_examples // ways
        numbers = [number for number in range(1, per_device + 1) if per_device % number == 0]
        only = self._space.num_microbatches
        return numbers if only is None else [number for number in numbers if number == only]

    def _fewest_that_fit(
        self, mesh: MeshSpec, remat: str, dtype: str, numbers: Sequence[int], tried: "_Tried"
    ) -> Candidate | None:
        """The candidate with the fewest microbatches that fits.

        A microbatch twice as small needs no more memory than before, so it is found by bisection; but the first, one
        microbatch alone, does without sums of gradients.
        """
        limit = tried.topology.chip.limit_bytes_per_device
        counted: dict[int, Candidate] = {}

        def candidate(number: int) -> Candidate | None:
            settings = Settings(remat=remat, num_microbatches=number, optimizer_dtype=dtype)
            if number not in counted:
                plan = self._plan(mesh, settings)
                stored = sum(leaf.bytes_per_device for leaf in plan.leaves)
                if limit is not None and stored > limit:
                    return None
                counted[number] = _candidate(self._estimate(plan, settings, tried.topology), settings)
                tried.num_estimates += 1
            return counted[number]

        def fits(number: int) -> bool:
            made = candidate(number)
            return made is not None and (limit is None or made.peak_bytes <= limit)

        if fits(numbers[0]):
            return counted[numbers[0]]
        if fits(numbers[-1]):
            return candidate(numbers[bisect.bisect_left(numbers, True, lo=1, key=fits)])
        tried.too_large += counted.values()
        return None

    def _step(self, settings: Settings) -> Step:
        if settings not in self._steps:
            self._steps[settings] = self._step_of(settings)
        return self._steps[settings]

    def _plan(self, mesh: MeshSpec, settings: Settings) -> ShardingPlan:
        """Derived from a microbatch, as training does."""
        if settings not in self._graphs:
            step = self._step(settings)
            part = microbatch_of(step.batch, settings.num_microbatches)
            self._graphs[settings] = trace_step(step.loss, step.params, part, optimizer=step.optimizer)
        plan = plan_of(self._graphs[settings], mesh, DEFAULT_LIMITS)
        guard.check(self._graphs[settings], plan)
        return plan

    def _estimate(self, plan: ShardingPlan, settings: Settings, topology: Topology) -> StepEstimate:
        step, key = self._step(settings), (settings.remat, settings.num_microbatches)
        if key not in self._programs:
            self._programs[key] = trace_programs(
                step.loss, step.params, step.batch, num_microbatches=settings.num_microbatches
            )
        return estimate_step(self._programs[key], plan, topology, num_tokens=step.num_tokens)


class _Tried:
    """What was met so far on one topology."""

    def __init__(self, topology: Topology):
        self.topology = topology
        self.fitting: list[Candidate] = []
        self.too_large: list[Candidate] = []
        self.num_estimates = 0
        self._refused: dict[str, Refusal] = {}

    def refuse(self, why: str, example: str, count: int) -> None:
        known = self._refused.get(why)
        self._refused[why] = Refusal(why=why, count=count, example=example) if known is None else known.more(count)

    def result(self) -> Search:
        closest = min(self.too_large, key=lambda made: (made.peak_bytes, made.rank), default=None)
        return Search(
            topology=self.topology,
            ranking=tuple(sorted(self.fitting, key=lambda made: made.rank)),
            closest=None if self.fitting else closest,
            refusals=tuple(self._refused.values()),
            num_estimates=self.num_estimates,
        )


def _candidate(estimate: StepEstimate, settings: Settings) -> Candidate:
    return Candidate(
        mesh=estimate.mesh,
        settings=settings,
        peak_bytes=estimate.memory.peak,
        bytes_sent=estimate.traffic.bytes_moved(),
        flops=sum(estimate.work.flops.values()),
        bound=estimate.bound,
        tokens_per_s=estimate.tokens_per_s,
    )


def _could_gain(best: Candidate, numbers: Sequence[int]) -> bool:
    """Whether state of fewer bytes could make the step faster: by fewer microbatches, or by moving less in memory."""
    compute, hbm = best.bound.compute_s, best.bound.hbm_s
    waits_for_memory = compute is not None and hbm is not None and hbm > compute
    return best.settings.num_microbatches > numbers[0] or waits_for_memory


def _is_worthwhile(less_precise: Candidate, best: Candidate) -> bool:
    ours, theirs = less_precise.rank[0], best.rank[0]
    return bool(ours < theirs * (1 - _WORTHWHILE))


def _num_examples(batch: Any) -> int:
    """What every leading dim of a batch is a multiple of."""
    return math.gcd(*(leaf.shape[0] for leaf in jax.tree.leaves(batch) if leaf.shape))
