"""`jaxscale compare`: two runs query by query, on one page."""

import dataclasses
from pathlib import Path
from typing import Any

import tyro

from jaxscale.data.lines import check_place, replace_text
from jaxscale.errors import UsageError
from jaxscale.observe.report import render
from retrieval.comparison.page import comparison_report
from retrieval.comparison.queries import RunComparison, compare_runs
from retrieval.evaluate import Measure
from retrieval.formats.beir import BeirFolder
from retrieval.formats.trec import read_run

_NUM_PRINTED = 5
_MAX_NAME = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Compares two TREC runs: both means, their difference, and every query with what each run found for it.

    A query is won where the second run does better than the first. The page shows the picture of all differences, then
    the queries, the most won and the most lost first, each with both runs' first passages, the relevant ones marked,
    and the ranks of these in both runs. It needs no network.

    Example: jaxscale compare bm25.trec dense.trec --data corpus --out page.html

    Attributes:
      run_a: the first run.
      run_b: the second run.
      data: the BEIR folder that was searched.
      out: the page to write; one that exists is replaced, in one step.
      split: whose judgements count.
      measure: nDCG@k, RR@k, R@k, P@k, MAP@k; nDCG, RR and MAP also without a cutoff.
      num_shown: passages of each run that the page shows for a query.
    """

    run_a: tyro.conf.Positional[Path]
    run_b: tyro.conf.Positional[Path]
    data: Path
    out: Path
    split: str = "test"
    measure: str = "nDCG@10"
    num_shown: int = 5

    def __post_init__(self) -> None:
        check_place(self.out)
        Measure.parse(self.measure)
        if self.num_shown < 1:
            raise UsageError(f"num_shown={self.num_shown} must be at least 1 passage")

    def run(self) -> dict[str, Any]:
        """Writes the page, prints what differs and returns it."""
        comparison = compare_runs(
            (read_run(self.run_a), read_run(self.run_b)),
            _names(self.run_a, self.run_b),
            BeirFolder.open(self.data, check="full"),
            split=self.split,
            measure=self.measure,
            num_shown=self.num_shown,
        )
        page = render(comparison_report(comparison))
        with replace_text(self.out) as text:
            text.write(page)
        _print(comparison)
        print(f"page: {self.out}")
        return {
            "runs": [str(self.run_a), str(self.run_b)],
            "page": str(self.out),
            "measure": comparison.measure,
            "means": [dataclasses.asdict(comparison.a), dataclasses.asdict(comparison.b)],
            "difference": dataclasses.asdict(comparison.difference),
            "p": comparison.p,
            "num_won": len(comparison.won),
            "num_lost": len(comparison.lost),
            "num_equal": len(comparison.equal),
            "queries": {query.query_id: [query.a.value, query.b.value] for query in comparison.queries},
        }


def _names(a: Path, b: Path) -> tuple[str, str]:
    """The files' names, with as many of the folders above them as it takes to tell them apart.

    >>> _names(Path("x/runs/nq/dense.trec"), Path("y/runs/nq/dense.trec"))
    ('x/runs/nq/dense', 'y/runs/nq/dense')
    >>> _names(Path("x/bm25.trec.gz"), Path("x/dense.trec"))
    ('bm25', 'dense')
    """
    parts = [(*path.parts[:-1], path.name.split(".")[0] or path.name) for path in (a, b)]
    depth = 1
    while depth < max(map(len, parts)) and parts[0][-depth:] == parts[1][-depth:]:
        depth += 1
    first, second = ("/".join(words[-depth:])[-_MAX_NAME:] for words in parts)
    return first, second


def _print(comparison: RunComparison) -> None:
    first, second = comparison.names
    for name, interval in zip(comparison.names, (comparison.a, comparison.b), strict=True):
        print(f"{name}: {comparison.measure} {interval.mean:.4f} ({interval.low:.4f} to {interval.high:.4f})")
    difference = comparison.difference
    print(
        f"{second} less {first}: {difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f}), "
        f"p = {comparison.p:.4f}"
    )
    won, lost = comparison.won, comparison.lost
    print(
        f"of {len(comparison.queries):,} queries {second} wins {len(won):,} and loses {len(lost):,}; "
        f"{len(comparison.equal):,} are equal"
    )
    for title, queries in (("most won", won), ("most lost", lost)):
        for query in queries[:_NUM_PRINTED]:
            print(f"{title}  {query.difference:+.4f}  {query.query_id}  {query.text}")
