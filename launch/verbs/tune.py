"""`jaxscale tune`: the fastest way to run a recipe's step on some devices, searched by the cost model and compiled."""

import bisect
import dataclasses
import sys
import time
from typing import Annotated, Any, Self

import tyro

from jaxscale import typed_json
from jaxscale.cost.chips import Topology
from jaxscale.cost.tune import Tuner
from jaxscale.cost.tune_candidates import Candidate
from jaxscale.errors import DoesNotFitError, UsageError
from launch.compile_recipe import CompileRequest, compile_recipe
from launch.plan_report import PlanReport
from launch.tune_report import Proven, TuneReport
from launch.tuned_job import flags_of, space_of, with_settings

# Compilations at most, for each that is to fit: the prediction may be wrong a few times.
_MAX_TRIES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Searches meshes, remat, microbatches and the optimizer's precision for the fastest step that fits a topology.

    The cost model counts every mesh of all devices; the first of its ranking are compiled for the topology, as `plan`
    does it, and the smallest slice of the chip that fits is told. What is chosen changes nothing that the recipe learns
    but by rounding. No data is read and no such device is needed; GPUs are predicted only. Exit code 7 where nothing
    fits.

    Example: jaxscale tune llama2_7b --topology v5e:16x16

    Attributes:
      topology: v5e:16x16, v5p:4x4x8, h100:8, cpu:8: a chip and its number in each direction of its network.
      slices: how many of these, joined by the data-centre network.
      compile: whether to compile; --no-compile predicts only.
      top: how many of the best to compile; one that does not fit is replaced by the next.
      rows: of the ranking to print; --json FILE has them all.
      job: the recipe's job.
    """

    topology: str = ""
    slices: int = 1
    compile: bool = True
    top: int = 3
    rows: int = 10
    recipe: tyro.conf.Suppress[str] = ""
    # tyro sees the class of the recipe's job through the default that `for_recipe` gives. An optional part that the
    # recipe has is flags like any other; one that it does without stays away.
    job: Annotated[Any, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands] = None

    @classmethod
    def for_recipe(cls, name: str, job: Any) -> Self:
        """The command of a recipe, with the recipe's own values.

        Args:
          name: the recipe's, for the processes that compile it.
          job: what it returns.

        Raises:
          UsageError: the recipe is of something that has no training step to tune.
        """
        if not hasattr(job, "planned_step"):
            raise UsageError(f"recipe {name!r} gives a {type(job).__name__}, which has no training step to tune")
        return cls(recipe=name, job=job)

    def run(self) -> dict[str, Any]:
        """Prints the report and returns it.

        Raises:
          DoesNotFitError: with nothing that was tried the memory is enough.
        """
        if not self.topology:
            raise UsageError("tune needs --topology, as in v5e:16x16, h100:8 or cpu:8")
        for name in ("top", "rows"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        topology = Topology.parse(self.topology, num_slices=self.slices)
        started = time.monotonic()
        tuner = Tuner(lambda settings: with_settings(self.job, settings).planned_step(), space_of(self.job))
        search = tuner.search(topology)
        smallest = tuner.smallest(topology)
        searched = time.monotonic() - started
        not_compiled = self._why_not_compiled(topology)
        report = TuneReport(
            search=search,
            proven=() if not_compiled else self._prove(tuner, topology, search.ranking),
            not_compiled=not_compiled,
            smallest=smallest,
            commands=(),
            search_s=searched,
        )
        report = dataclasses.replace(report, commands=self._commands(report))
        print(report.render(self.rows))
        if report.best is None:
            raise DoesNotFitError(
                f"{self.recipe} does not fit on {topology} with any mesh, remat, number of microbatches and precision "
                "that was tried; take more devices, or a chip of more memory",
                report=report.to_json(),
            )
        return report.to_json()

    def _why_not_compiled(self, topology: Topology) -> str:
        if topology.chip.kind == "gpu":
            return "programs for GPUs can't be compiled without one"
        return "" if self.compile else "as asked"

    def _prove(self, tuner: Tuner, topology: Topology, ranking: tuple[Candidate, ...]) -> tuple[Proven, ...]:
        """Compiles the best until enough of them fit; one that does not comes again with more microbatches."""
        waiting, proven, num_fitting = list(ranking), list[Proven](), 0
        while waiting and num_fitting < self.top and len(proven) < _MAX_TRIES * self.top:
            candidate = waiting.pop(0)
            print(f"compiling mesh {candidate.mesh}, {candidate.settings}", file=sys.stderr)
            made = self._compiled(tuner, topology, candidate)
            proven.append(made)
            num_fitting += made.fits
            smaller = None if made.fits else tuner.next_smaller(candidate, topology)
            if smaller is not None:
                bisect.insort(waiting, smaller, key=lambda one: one.rank)
        return tuple(proven)

    def _compiled(self, tuner: Tuner, topology: Topology, candidate: Candidate) -> Proven:
        compiled = compile_recipe(
            CompileRequest(
                recipe=self.recipe,
                job=typed_json.encode(with_settings(self.job, candidate.settings)),
                topology=self.topology,
                num_slices=self.slices,
                mesh=str(candidate.mesh),
            )
        )
        estimate = tuner.estimate(candidate.mesh, candidate.settings, topology)
        return Proven(candidate=candidate, report=PlanReport(estimate=estimate, compiled=compiled, changes=()))

    def _commands(self, report: TuneReport) -> tuple[str, ...]:
        commands = []
        if report.best is not None:
            commands += [f"the best: {self._command(report.search.topology, report.best)}"]
        if report.smallest is not None and report.smallest.best is not None:
            commands += [f"the smallest slice: {self._command(report.smallest.topology, report.smallest.best)}"]
        return tuple(commands)

    def _command(self, topology: Topology, candidate: Candidate) -> str:
        shape = "x".join(map(str, topology.shape))
        slices = f" --slices {topology.num_slices}" if topology.num_slices > 1 else ""
        where = f"--topology {topology.chip.name}:{shape}{slices} --mesh {candidate.mesh}"
        return f"jaxscale plan {self.recipe} {where} {flags_of(self.job, candidate.settings)}"
