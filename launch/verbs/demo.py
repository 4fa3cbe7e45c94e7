"""`jaxscale demo`: the whole story on this machine's own Python documentation, then a report."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxscale.errors import UsageError, VerificationError
from jaxscale.mesh import mesh_from_text
from jaxscale.store.disk import check_directory_above
from launch.demo.comparison import MEASURES
from launch.demo.page import write_page
from launch.demo.story import Outcome, tell


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Trains a retriever of the installed Python packages on 8 emulated devices, kills it, resumes it, measures it.

    Leaves a corpus, a model, vectors, indexes, summary.json and report.html in the folder.

    Example: jaxscale demo --out demo-out

    Attributes:
      out: the folder to make.
      num_steps: training steps; the recipe's own number when not given.
    """

    out: Path = Path("demo-out")
    num_steps: int | None = None

    def __post_init__(self) -> None:
        check_directory_above(self.out)
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"--out {self.out} is a file; name a folder to make")
        if self.num_steps is not None and self.num_steps < 1:
            raise UsageError(f"num_steps={self.num_steps} must be at least 1")

    def run(self) -> dict[str, Any]:
        """Tells the story, prints the table, writes report and summary, and returns the summary."""
        outcome = tell(self.out, mesh_from_text(""), num_steps=self.num_steps)
        summary = outcome.summary()
        (self.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        write_page(self.out / "report.html", outcome)
        _print(outcome)
        if not outcome.resume.bitwise:
            raise VerificationError(
                f"the resumed run differs from the unbroken one at step {outcome.resume.compared_at_step} in "
                f"{len(outcome.resume.differing)} of {outcome.resume.num_leaves} arrays: "
                f"{', '.join(outcome.resume.differing[:5])}",
                report=summary,
            )
        return summary


def _print(outcome: Outcome) -> None:
    for comparison in outcome.comparisons:
        num_queries = len(next(iter(comparison.systems.values())).query_ids)
        print(f"\n{comparison.split}: {num_queries} queries, {outcome.num_docs} passages")
        print(f"{'':<12}" + "".join(f"{measure:>24}" for measure in MEASURES))
        for name, evaluation in comparison.systems.items():
            intervals = [evaluation.interval(measure) for measure in MEASURES]
            cells = [f"{i.mean:.3f} ({i.low:.3f} to {i.high:.3f})" for i in intervals]
            print(f"{name:<12}" + "".join(f"{cell:>24}" for cell in cells))
    for search in outcome.searches:
        print(f"\n? {search.query.text}")
        for hit in search.hits:
            print(f"{'*' if hit.doc_id in search.expected else ' '} {hit.rank}. {hit.doc_id}")
    resume = outcome.resume
    print(
        f"\nkilled with SIGKILL after step {resume.killed_after_step}, resumed; at step {resume.compared_at_step} "
        f"{'every bit is' if resume.bitwise else 'NOT every bit is'} that of the run nobody killed"
    )
    print(f"report: {outcome.home / 'report.html'}")
