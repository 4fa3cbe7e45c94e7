"""`jaxscale eval`: a run and judgements -> measures with confidence intervals, and a test against another run."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxscale.errors import UsageError
from retrieval.evaluate import DEFAULT_MEASURES, Evaluation, evaluate, paired_randomization
from retrieval.formats.qrels import read_qrels
from retrieval.formats.trec import read_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Measures a run against judgements, as trec_eval does.

    Prints each measure's mean over the judged queries with its bootstrap confidence interval; with --against also the
    other run's mean, the difference and the p value of a two-sided paired randomisation test.

    Example: jaxscale eval --run hybrid.trec --qrels corpus/qrels/test.tsv --against bm25.trec
    """

    run_file: Annotated[Path, tyro.conf.arg(name="run")]
    """The TREC run to measure."""
    qrels: Path
    """Judgements: TREC's four columns or BEIR's three."""
    measures: tuple[str, ...] = DEFAULT_MEASURES
    """nDCG@k, RR@k, R@k, P@k, MAP@k; nDCG, RR and MAP also without a cutoff."""
    against: Path | None = None
    """Another TREC run, to compare with."""
    level: float = 0.95
    """Coverage of the intervals."""
    num_samples: int = 5_000
    """Bootstrap samples."""
    num_permutations: int = 10_000
    """Random permutations of the test."""
    seed: int = 0
    """Of the samples and the permutations."""

    def __post_init__(self) -> None:
        if not self.measures:
            raise UsageError("measures: got none, expected at least one such as nDCG@10")
        if not 0 < self.level < 1:
            raise UsageError(f"level={self.level} must lie between 0 and 1")
        for name in ("num_samples", "num_permutations"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        if self.seed < 0:
            raise UsageError(f"seed={self.seed} must be at least 0")

    def run(self) -> dict[str, Any]:
        """Prints the table and returns its numbers."""
        qrels = read_qrels(self.qrels)
        ours = evaluate(read_run(self.run_file), qrels, self.measures)
        other = None if self.against is None else evaluate(read_run(self.against), qrels, self.measures)
        rows = {name: self._row(name, ours, other) for name in ours.per_query}
        self._print(rows)
        print(
            f"{len(ours.query_ids)} judged queries; {ours.num_missing} of them missing from the run and counted as "
            f"zero; {ours.num_not_judged} queries of the run not judged and left out"
        )
        return {
            "run": str(self.run_file),
            "qrels": str(self.qrels),
            "against": None if self.against is None else str(self.against),
            "level": self.level,
            "num_queries": len(ours.query_ids),
            "num_missing": ours.num_missing,
            "num_not_judged": ours.num_not_judged,
            "measures": rows,
        }

    def _row(self, name: str, ours: Evaluation, other: Evaluation | None) -> dict[str, float]:
        interval = ours.interval(name, level=self.level, num_samples=self.num_samples, seed=self.seed)
        row = dataclasses.asdict(interval)
        if other is not None:
            row["against"] = other.mean(name)
            row["difference"] = row["mean"] - row["against"]
            row["p"] = paired_randomization(
                ours.values(name), other.values(name), num_permutations=self.num_permutations, seed=self.seed
            )
        return row

    def _print(self, rows: dict[str, dict[str, float]]) -> None:
        columns = list(next(iter(rows.values())))
        width = max(len("measure"), *map(len, rows)) + 2
        print(f"{'measure':<{width}}" + "".join(f"{column:>11}" for column in columns))
        for name, row in rows.items():
            print(f"{name:<{width}}" + "".join(f"{row[column]:>11.4f}" for column in columns))
