"""The figures of a benchmark: means with intervals, of each folder and over all, and what differences are worth."""

import dataclasses
from collections.abc import Mapping, Sequence

from jaxtyping import Float64
from numpy import ndarray

from retrieval.benchmark.runs_folder import SYSTEMS
from retrieval.evaluate import Evaluation, Interval, macro_interval, macro_randomization

BEFORE = "_before"
_BM25, _DENSE, _HYBRID = SYSTEMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One system's mean less another's, on the same queries.

    Attributes:
      system: whose mean.
      against: whose is subtracted.
      measure: of what.
      difference: with its interval.
      p: of a paired randomisation test, two-sided.
    """

    system: str
    against: str
    measure: str
    difference: Interval
    p: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured on one folder, or over several with equal weight.

    Attributes:
      systems: system -> measure -> mean with its interval.
      differences: dense against BM25, hybrid against the better of both, and each against what it was before.
    """

    systems: dict[str, dict[str, Interval]]
    differences: tuple[Difference, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderFigures:
    """All that is said of one folder.

    Attributes:
      name: the folder's.
      num_docs: documents of its corpus.
      num_truncated: of them, cut off at the encoder's length limit.
      num_queries: judged queries, over which means are taken.
      num_missing: of them, those without a text, which count as zero.
      dense_weight: the weight of the dense list in the hybrid.
      chosen_on_dev: whether a dev split chose it.
      runs: names the directory of runs that was measured.
      figures: what was measured.
    """

    name: str
    num_docs: int
    num_truncated: int
    num_queries: int
    num_missing: int
    dense_weight: float
    chosen_on_dev: bool
    runs: str
    figures: Figures


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The figures of all folders; the file results.json.

    Attributes:
      model: the retriever, as it was named.
      against: what it is compared with, as it was named; None for nothing.
      split: whose queries were searched.
      measures: the first one leads.
      depth: documents of each query that a run keeps.
      folders: in the order in which they were named.
      mean: over all folders with equal weight; None of a single one.
    """

    model: str
    against: str | None
    split: str
    measures: tuple[str, ...]
    depth: int
    folders: tuple[FolderFigures, ...]
    mean: Figures | None


def figures_of(folders: Sequence[Mapping[str, Evaluation]], measures: Sequence[str]) -> Figures:
    """The figures of one folder, or the mean over several.

    Args:
      folders: of each, system -> its measures per query; the systems of a folder are measured on the same queries.
      measures: among those evaluated.
    """
    systems = {
        name: {measure: macro_interval(_values(folders, name, measure)) for measure in measures} for name in folders[0]
    }

    def difference(system: str, against: str, measure: str) -> Difference:
        ours, theirs = (_values(folders, name, measure) for name in (system, against))
        return Difference(
            system=system,
            against=against,
            measure=measure,
            difference=macro_interval([a - b for a, b in zip(ours, theirs, strict=True)]),
            p=macro_randomization(ours, theirs),
        )

    differences = []
    for measure in measures:
        better = max((_BM25, _DENSE), key=lambda name: systems[name][measure].mean)
        pairs = [(_DENSE, _BM25), (_HYBRID, better)]
        pairs += [(name, name + BEFORE) for name in (_DENSE, _HYBRID) if name + BEFORE in systems]
        differences += [difference(system, against, measure) for system, against in pairs]
    return Figures(systems=systems, differences=tuple(differences))


def _values(folders: Sequence[Mapping[str, Evaluation]], system: str, measure: str) -> list[Float64[ndarray, "Q"]]:
    return [folder[system].values(measure) for folder in folders]
