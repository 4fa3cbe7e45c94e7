"""Runs a benchmark: every folder searched that was not yet, all of them measured, the results committed.

The layout is written down in docs/formats/benchmark.md. The same call goes on where a kill cut it off.
"""

import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh

from jaxscale import typed_json
from jaxscale.errors import DataError, UsageError
from jaxscale.observe.report import write_report
from jaxscale.store import commit, disk
from retrieval.benchmark import runs_folder
from retrieval.benchmark.page import benchmark_report
from retrieval.benchmark.runs_folder import SYSTEMS, FolderRuns, open_runs, require_same, write_runs
from retrieval.benchmark.searches import Dataset, Parts, SearchOptions, identity_of, read_dataset, search_dataset
from retrieval.benchmark.table import BEFORE, Benchmark, FolderFigures, figures_of
from retrieval.evaluate import DEFAULT_MEASURES, Evaluation, Measure, evaluate
from retrieval.towers.retriever_folder import LoadedTowers

FORMAT, VERSION = "jaxscale.benchmark", 1
RUNS, AGAINST, PARTS, RESULTS = "runs", "against", "parts", "results"  # of a benchmark's folder
# What runs of another benchmark must share with these to be compared with them.
_COMPARED = ("corpus", "queries", "split", "depth")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """A retriever that is measured.

    Attributes:
      name: as it was named, for the results.
      towers: its encoders.
    """

    name: str
    towers: LoadedTowers


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Places:
    """Where the runs of one folder are: those of the retriever, and those it is compared with."""

    dataset: Dataset
    runs: Path
    against: Path | None


def run_benchmark(
    contender: Contender,
    data: Sequence[Path],
    out: Path,
    mesh: Mesh,
    *,
    options: SearchOptions,
    measures: Sequence[str] = DEFAULT_MEASURES,
    against: Contender | Path | None = None,
    keep_parts: bool = False,
) -> Benchmark:
    """Searches what was not searched yet, measures all and commits the results.

    Args:
      contender: the retriever.
      data: BEIR folders, no two of one name.
      out: the benchmark's folder; made where there is none.
      mesh: where texts are encoded and vectors searched.
      options: how the folders are searched.
      measures: such as `nDCG@10`; the first one leads.
      against: another retriever, or the folder of an earlier benchmark; None for neither.
      keep_parts: whether the vectors and BM25 indexes of the folders that are searched now stay.

    Raises:
      UsageError: the folder belongs to something else, or the arguments do not fit each other.
      DataError: a folder is malformed, or the earlier benchmark lacks it.
      VerificationError: runs that are there are damaged.
      MachineError: the folder is in use, or the disk is full.
    """
    measures = tuple(_checked(measures, options.depth))
    places = _check(contender, data, out, options, against)
    for number, place in enumerate(places, 1):
        parts = Parts(out / PARTS / place.dataset.name)
        searched = _search(place, contender, against, parts, mesh, options, keep_parts)
        done = f"{place.dataset.name} {'searched' if searched else 'was there'}"
        print(f"benchmark: folder {number}/{len(places)} {done}", file=sys.stderr, flush=True)
    evaluations = [_evaluate(place, measures) for place in places]
    benchmark = Benchmark(
        model=contender.name,
        against=against.name if isinstance(against, Contender) else None if against is None else str(against),
        split=options.split,
        measures=measures,
        depth=options.depth,
        folders=tuple(_folder(place, found, measures) for place, found in zip(places, evaluations, strict=True)),
        mean=figures_of(evaluations, measures) if len(evaluations) > 1 else None,
    )
    _write_results(out / RESULTS, benchmark)
    return benchmark


def _checked(measures: Sequence[str], depth: int) -> list[str]:
    """The measures as they are written, none twice and none that looks deeper than the runs."""
    parsed = [Measure.parse(text) for text in measures]
    if not parsed or len(set(parsed)) < len(parsed):
        raise UsageError(f"measures={tuple(measures)} must name at least one, none twice")
    deepest = max(measure.cutoff or 0 for measure in parsed)
    if deepest > depth:
        raise UsageError(f"depth={depth} is too shallow for a measure at {deepest}; use at least {deepest}")
    return [str(measure) for measure in parsed]


def _check(
    contender: Contender, data: Sequence[Path], out: Path, options: SearchOptions, against: Contender | Path | None
) -> list[_Places]:
    """Reads every folder and refuses what would only be met after hours of embedding."""
    names = Counter(path.resolve().name for path in data)
    twice = [name for name, count in names.items() if count > 1]
    if not names or twice:
        raise UsageError(
            f"data: two folders have the name {twice[0]!r}, and runs are kept by it; rename one"
            if twice
            else "data: got no folder, expected at least one BEIR folder"
        )
    disk.check_directory_above(out / RUNS)
    commit.check_place(out / RESULTS, format=FORMAT, replace=True)
    places = []
    for path in data:
        dataset = read_dataset(path, options)
        place = _Places(
            dataset=dataset,
            runs=out / RUNS / dataset.name,
            against=None
            if against is None
            else against / RUNS / dataset.name
            if isinstance(against, Path)
            else out / AGAINST / dataset.name,
        )
        _check_runs(place.runs, dataset, contender, options)
        if isinstance(against, Contender) and place.against is not None:
            _check_runs(place.against, dataset, against, options)
        elif place.against is not None:
            _check_earlier(place.against, dataset, contender, options)
        places.append(place)
    return places


def _check_runs(path: Path, dataset: Dataset, contender: Contender, options: SearchOptions) -> None:
    """Runs that are there must be those that are wanted; nothing else may be in their place."""
    if commit.is_committed(path):
        require_same(open_runs(path), identity_of(dataset, contender.towers, options))
    else:
        commit.check_place(path, format=runs_folder.FORMAT, replace=False)


def _check_earlier(path: Path, dataset: Dataset, contender: Contender, options: SearchOptions) -> None:
    if not commit.is_committed(path):
        raise DataError(
            f"against: there are no runs in {path}; expected an earlier benchmark of {dataset.name!r}, or a retriever"
        )
    require_same(open_runs(path), identity_of(dataset, contender.towers, options), _COMPARED)


def _search(
    place: _Places,
    contender: Contender,
    against: Contender | Path | None,
    parts: Parts,
    mesh: Mesh,
    options: SearchOptions,
    keep_parts: bool,
) -> bool:
    """Makes the runs of one folder that are not there yet; returns whether there were any such."""
    wanted = [(place.runs, contender)]
    if isinstance(against, Contender) and place.against is not None:
        wanted.append((place.against, against))
    missing = [(path, one) for path, one in wanted if not commit.is_committed(path)]
    for path, one in missing:
        write_runs(path, *search_dataset(place.dataset, one.towers, parts, mesh, options))
    if missing and not keep_parts:
        parts.remove()
    return bool(missing)


def _evaluate(place: _Places, measures: Sequence[str]) -> dict[str, Evaluation]:
    """Every system's measures on a folder, out of the committed runs."""
    runs = {system: open_runs(place.runs).read(system) for system in SYSTEMS}
    if place.against is not None:
        before = open_runs(place.against)
        runs |= {system + BEFORE: before.read(system) for system in SYSTEMS[1:]}
    return {name: evaluate(run, place.dataset.qrels, measures) for name, run in runs.items()}


def _folder(place: _Places, evaluations: dict[str, Evaluation], measures: Sequence[str]) -> FolderFigures:
    found: FolderRuns = open_runs(place.runs, check="sizes")
    described = found.description
    return FolderFigures(
        name=place.dataset.name,
        num_docs=described.num_docs,
        num_truncated=described.num_truncated,
        num_queries=len(place.dataset.qrels),
        num_missing=evaluations[SYSTEMS[0]].num_missing,
        dense_weight=described.dense_weight,
        chosen_on_dev=described.identity.dev is not None,
        runs=found.manifest_identity,
        figures=figures_of([evaluations], measures),
    )


def _write_results(path: Path, benchmark: Benchmark) -> None:
    with commit.draft(path, format=FORMAT, version=VERSION, replace=True) as draft:
        (draft.path / "results.json").write_text(typed_json.pretty(benchmark), encoding="utf-8")
        write_report(draft.path / "report.html", benchmark_report(benchmark))
        draft.counts["folders"] = len(benchmark.folders)
        draft.parents |= {f"runs.{folder.name}": folder.runs for folder in benchmark.folders}
