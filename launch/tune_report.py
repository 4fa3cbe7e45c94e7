"""What `jaxscale tune` found: the ranking, the first ones beside what the compiler made of them, the smallest slice."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxscale import typed_json
from jaxscale.cost.tune_candidates import Candidate, Search, step_time
from jaxscale.sharding.plan import render_table
from launch.plan_report import PlanReport

_GIB = 1024**3
_MIB = 2**20
Row = tuple[str, ...]
_HEADER = ("", "mesh", "remat", "microbatches", "1st moment", "peak", "sent", "step", "at least", "bound by")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proven:
    """A candidate that was compiled.

    Attributes:
      candidate: as predicted.
      report: everything that is known of it, predicted and compiled.
    """

    candidate: Candidate
    report: PlanReport

    @property
    def fits(self) -> bool:
        """The compiler's verdict."""
        return self.report.fits is not False

    @property
    def step_s(self) -> float | None:
        """The step's time with the bytes that the compiled program sends."""
        bound = self.report.compiled_bound
        return None if bound is None else step_time(bound)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneReport:
    """All that was found.

    Attributes:
      search: on the topology that was asked about.
      proven: in the order in which they were compiled; empty where nothing can be or was to be.
      not_compiled: why nothing was compiled; empty where it was.
      smallest: the search on the smallest slice with which the step fits; None where no smaller one does.
      commands: what to type for the best, and for the best on the smallest slice.
      search_s: seconds that searching took.
    """

    search: Search
    proven: tuple[Proven, ...]
    not_compiled: str
    smallest: Search | None
    commands: tuple[str, ...]
    search_s: float

    @property
    def best(self) -> Candidate | None:
        """Of those that were proven to fit, the fastest as compiled; without a proof, the first of the ranking."""
        if self.not_compiled:
            return self.search.best
        fitting = sorted((proven for proven in self.proven if proven.fits), key=_rank)
        return fitting[0].candidate if fitting else None

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        search, smallest = self.search, self.smallest
        return {
            "topology": str(search.topology),
            "best": None if self.best is None else _candidate_json(self.best),
            "ranking": [_candidate_json(candidate) for candidate in search.ranking],
            "closest": None if search.closest is None else _candidate_json(search.closest),
            "refusals": typed_json.encode(search.refusals),
            "num_estimates": search.num_estimates,
            "search_s": self.search_s,
            "proven": [
                {**_candidate_json(proven.candidate), "compiled_step_s": proven.step_s, **proven.report.to_json()}
                for proven in self.proven
            ],
            "not_compiled": self.not_compiled,
            "smallest": None
            if smallest is None or smallest.best is None
            else {"topology": str(smallest.topology), **_candidate_json(smallest.best)},
            "commands": list(self.commands),
        }

    def render(self, num_rows: int) -> str:
        """The report as lines for people.

        Args:
          num_rows: of the ranking.
        """
        search = self.search
        lines = [f"{search.topology}: {search.num_estimates} steps counted in {self.search_s:.0f} s", ""]
        if search.ranking:
            shown = search.ranking[:num_rows]
            lines += [f"the {len(shown)} best of {len(search.ranking)} that fit, as predicted", *_ranking(shown), ""]
        if search.closest is not None:
            lines += ["nothing fits; the closest", *_ranking([search.closest]), ""]
        lines += ["no candidates, of all pairs of mesh and remat"]
        lines += _table([(str(r.count), r.why, f"such as: {_shortened(r.example)}") for r in search.refusals])
        lines += ["", *self._proof(), "", *self._smallest()]
        return "\n".join([*lines, *(["", *self.commands] if self.commands else [])])

    def _proof(self) -> list[str]:
        if self.not_compiled:
            return [f"not compiled: {self.not_compiled}; all figures are the cost model's"]
        if not self.proven:
            return []
        rows: list[Row] = [("mesh", "remat", "microbatches", "", "peak", "sent", "step", "verdict")]
        for proven in self.proven:
            candidate, report = proven.candidate, proven.report
            settings, compiled = candidate.settings, report.compiled
            named = (str(candidate.mesh), settings.remat, str(settings.num_microbatches))
            predicted = (_gib(candidate.peak_bytes), _mib(candidate.bytes_sent), _seconds(candidate.step_s))
            rows += [(*named, "predicted", *predicted, "fits")]
            if compiled is not None:
                step = compiled.step
                refused, memory = step.out_of_memory, step.memory
                peak = memory.peak if memory is not None else refused.needed_bytes if refused is not None else None
                sent = sum(total.bytes_moved for total in step.collectives)
                verdict = f"{'fits' if proven.fits else 'does not fit'}, compiled in {step.compile_s:.0f} s"
                rows += [("", "", "", "compiled", _gib(peak), _mib(sent), _seconds(proven.step_s), verdict)]
        return ["proven by compiling", *_table(rows)]

    def _smallest(self) -> list[str]:
        best = None if self.smallest is None else self.smallest.best
        if self.search.topology.chip.limit_bytes_per_device is None:
            return ["the smallest slice that fits is not known: no limit of this chip's memory is"]
        if self.smallest is None or best is None:
            fits = bool(self.search.ranking)
            return [f"no smaller slice fits than {self.search.topology}" if fits else "no smaller slice fits either"]
        return [f"the smallest slice that fits, as predicted: {self.smallest.topology}", *_ranking([best])]


def _rank(proven: Proven) -> tuple[Any, ...]:
    time = proven.step_s
    return (time is None, time or 0.0, proven.candidate.rank)


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    encoded: dict[str, Any] = typed_json.encode(candidate)
    return {**encoded, "mesh": str(candidate.mesh), "step_s": candidate.step_s}


def _ranking(candidates: Sequence[Candidate]) -> list[str]:
    rows: list[Row] = [_HEADER]
    for i, candidate in enumerate(candidates):
        settings, bound = candidate.settings, candidate.bound
        rows += [
            (
                str(i + 1),
                str(candidate.mesh),
                settings.remat,
                str(settings.num_microbatches),
                settings.optimizer_dtype,
                _gib(candidate.peak_bytes),
                _mib(candidate.bytes_sent),
                _seconds(candidate.step_s),
                _seconds(bound.overlapped_s),
                {"compute": "compute", None: "?"}.get(bound.bound_by, str(bound.bound_by).upper()),
            )
        ]
    return _table(rows)


def _table(rows: list[Row]) -> list[str]:
    return [f"  {line}" for line in render_table(rows)] if rows else ["  none"]


def _shortened(text: str, most: int = 160) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _gib(num_bytes: float | None) -> str:
    return "?" if num_bytes is None else f"{num_bytes / _GIB:.2f} GiB"


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / _MIB:,.1f} MiB"


def _seconds(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:.3g} s"
