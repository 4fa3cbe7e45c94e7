"""The page of a benchmark: a table and a chart for each folder and for their mean, and what differences are worth."""

from jaxscale.observe import environment, report
from jaxscale.observe.comparison_sections import Change, Changes, styles
from jaxscale.observe.sections import Environment, MetricsTable, Score, Section
from retrieval.benchmark.table import BEFORE, Benchmark, Difference, Figures, FolderFigures
from retrieval.evaluate import Interval

NAMES = {
    "bm25": "BM25",
    "dense": "dense",
    "hybrid": "hybrid",
    f"dense{BEFORE}": "dense, before",
    f"hybrid{BEFORE}": "hybrid, before",
}
_HOW = "95 % bootstrap intervals over queries"
_TESTS = (
    "Differences with their 95 % bootstrap intervals, and p values of two-sided paired randomisation tests; not "
    "corrected for their number."
)


def benchmark_report(benchmark: Benchmark) -> report.Report:
    """The page as data."""
    first, num_folders = benchmark.measures[0], len(benchmark.folders)
    whole = benchmark.mean or benchmark.folders[0].figures
    over = f", mean over {num_folders} folders" if benchmark.mean else ""
    facts = [
        report.Fact(value=f"{whole.systems[name][first].mean:.3f}", label=f"{first} of {shown}{over}")
        for name, shown in NAMES.items()
        if name in whole.systems
    ]
    return report.Report(
        title=f"{benchmark.model} on {num_folders} BEIR folder{'s' * (num_folders > 1)}",
        summary=(
            f"Exact search for the queries of the split {benchmark.split}, to depth {benchmark.depth}, beside BM25 "
            f"and both fused{f', and what changed against {benchmark.against}' if benchmark.against else ''}."
        ),
        facts=tuple(facts),
        sections=tuple(_sections(benchmark)),
        styles=styles(),
    )


def weight_words(folder: FolderFigures, split: str) -> str:
    """Where the weight of a folder's hybrid comes from."""
    how = "chosen on dev queries" if folder.chosen_on_dev else "given, there being no dev split"
    missing = f"; {folder.num_missing} queries have no text and count as zero" if folder.num_missing else ""
    return (
        f"{folder.num_queries:,} queries of {split}, {folder.num_docs:,} passages, {folder.num_truncated:,} of them "
        f"cut off; weight of dense in the hybrid {folder.dense_weight:g}, {how}{missing}"
    )


def _sections(benchmark: Benchmark) -> list[Section]:
    named = [(folder.name, folder.figures) for folder in benchmark.folders]
    sections: list[Section] = []
    if benchmark.mean is not None:
        named.insert(0, ("mean", benchmark.mean))
        title = f"Mean over {len(benchmark.folders)} folders"
        sections.append(_table(title, benchmark.mean, benchmark.measures, f"each folder weighs the same; {_HOW}"))
    titles = {"dense": "Dense against BM25", "hybrid": "Hybrid against the better of both"}
    sections += [_changes(title, system, named, benchmark, before=False) for system, title in titles.items()]
    if benchmark.against is not None:
        titles = {"dense": "Dense, before and after", "hybrid": "Hybrid, before and after"}
        sections += [_changes(title, system, named, benchmark, before=True) for system, title in titles.items()]
    for folder in benchmark.folders:
        caption = f"{weight_words(folder, benchmark.split)}; {_HOW}"
        sections.append(_table(folder.name, folder.figures, benchmark.measures, caption))
    return [*sections, Environment(title="Where the page was made", snapshot=environment.snapshot())]


def _table(title: str, figures: Figures, measures: tuple[str, ...], caption: str) -> MetricsTable:
    systems = tuple(
        (NAMES[name], tuple(_score(values[measure]) for measure in measures))
        for name, values in figures.systems.items()
    )
    return MetricsTable(title=title, measures=measures, systems=systems, caption=caption)


def _changes(
    title: str, system: str, named: list[tuple[str, Figures]], benchmark: Benchmark, *, before: bool
) -> Changes:
    """The differences of one system, measure by measure: against what it was before, or against the others."""
    groups = tuple(
        (
            measure,
            tuple(
                _change(name, figures, found)
                for name, figures in named
                for found in figures.differences
                if (found.measure, found.system, found.against.endswith(BEFORE)) == (measure, system, before)
            ),
        )
        for measure in benchmark.measures
    )
    text = f"From {benchmark.against} to {benchmark.model}." if before else ""
    return Changes(title=title, groups=groups, caption=_TESTS, text=text)


def _change(name: str, figures: Figures, found: Difference) -> Change:
    against = f" ({NAMES[found.against]})" if found.system == "hybrid" and not found.against.endswith(BEFORE) else ""
    before, after = (figures.systems[system][found.measure].mean for system in (found.against, found.system))
    return Change(name=name + against, before=before, after=after, difference=_score(found.difference), p=found.p)


def _score(interval: Interval) -> Score:
    return Score(value=interval.mean, low=interval.low, high=interval.high)
