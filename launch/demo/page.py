"""The demo's report: its outcome as the sections of one page."""

from pathlib import Path

from jaxscale.observe import environment, report, sections
from jaxscale.observe.metrics import read_metrics
from jaxscale.observe.units import format_bytes, format_seconds
from jaxscale.train.events import read_events
from launch.demo.comparison import MEASURES, Comparison
from launch.demo.story import Outcome
from launch.run_page import plan_table

_SYSTEM_NAMES = {"bm25": "BM25", "untrained": "untrained tower", "dense": "dense", "hybrid": "hybrid"}
_SPLIT_NAMES = {"test": "summary sentences", "natural": "questions written by hand"}


def write_page(path: Path, outcome: Outcome) -> None:
    """Writes the page of a demo.

    Args:
      path: the file to write.
      outcome: what the demo found out.
    """
    report.write_report(path, demo_report(outcome))


def demo_report(outcome: Outcome) -> report.Report:
    """The page as data."""
    test = outcome.comparisons[0]
    dense, hybrid = (test.systems[name].mean("nDCG@10") for name in ("dense", "hybrid"))
    total_s = sum(seconds for _, seconds in outcome.phases_s)
    return report.Report(
        title="jaxscale on this machine",
        summary=(
            f"A dual tower learned to search the documentation of the Python packages installed here: "
            f"{outcome.num_docs:,} passages. Its training was killed and started again, its vectors and indexes were "
            "committed and verified, and everything was measured against BM25."
        ),
        facts=(
            report.Fact(value=f"{hybrid:.3f}", label="nDCG@10 of the hybrid"),
            report.Fact(value=f"{dense:.3f}", label="nDCG@10 of the tower alone"),
            report.Fact(value="bitwise" if outcome.resume.bitwise else "different", label="resume after kill -9"),
            report.Fact(value=format_seconds(total_s), label="in all"),
        ),
        sections=(
            *map(_table, outcome.comparisons),
            _searches(outcome),
            _checks(outcome),
            _loss(outcome),
            plan_table(outcome.home / "model", "Where each array lives"),
            sections.Timings(title="How long it took", phases_s=outcome.phases_s),
            sections.Environment(title="Where it ran", snapshot=environment.snapshot()),
        ),
    )


def _table(comparison: Comparison) -> sections.MetricsTable:
    num_queries = len(next(iter(comparison.systems.values())).query_ids)
    scores = {
        name: tuple(
            sections.Score(value=i.mean, low=i.low, high=i.high) for i in (evaluation.interval(m) for m in MEASURES)
        )
        for name, evaluation in comparison.systems.items()
    }
    return sections.MetricsTable(
        title=f"How well it finds: {_SPLIT_NAMES[comparison.split]}",
        measures=MEASURES,
        systems=tuple((_SYSTEM_NAMES[name], values) for name, values in scores.items()),
        caption=f"{num_queries} queries of the split {comparison.split}; 95 % bootstrap intervals over queries",
        text=(
            f"The hybrid is a sum of z-scores with weight {comparison.dense_weight:g} on the dense list, chosen on dev "
            f"queries. Against BM25 its nDCG@10 has p = {comparison.hybrid_p:.4f} (paired randomisation, two-sided)."
        ),
    )


def _searches(outcome: Outcome) -> sections.Searches:
    return sections.Searches(
        title="Three searches",
        searches=tuple(
            sections.Search(
                query=search.query.text,
                system="hybrid",
                hits=tuple(
                    sections.Hit(
                        title=hit.doc_id,
                        text="" if hit.doc is None else hit.doc.text,
                        score=hit.score,
                        expected=hit.doc_id in search.expected,
                    )
                    for hit in search.hits
                ),
            )
            for search in outcome.searches
        ),
        text=(
            "Three questions that nobody trained on, chosen by hand; the table of questions written by hand tells how "
            "often such questions find their answer."
        ),
    )


def _checks(outcome: Outcome) -> sections.Checks:
    resume, index = outcome.resume, outcome.index
    recall = None if index.recall is None else index.recall.value
    shown = "not measured" if recall is None else f"{recall:.3f}"
    differing = f"; differing: {', '.join(resume.differing[:5])}" if resume.differing else ""
    return sections.Checks(
        title="What was put to the test",
        checks=(
            sections.Check(
                name="kill -9 and resume, bit by bit",
                passed=resume.bitwise,
                detail=(
                    f"Killed after step {resume.killed_after_step} and started again by the same command. At step "
                    f"{resume.compared_at_step} all {resume.num_leaves} arrays ({format_bytes(resume.num_bytes)})"
                    f" of its state were compared with those of a run that nobody killed{differing}."
                ),
            ),
            sections.Check(
                name=f"the {outcome.index_kind} index finds what exact search finds",
                passed=recall is not None and recall >= 0.9,
                detail=f"Recall@10 against exact search: {shown}.",
            ),
        ),
    )


def _loss(outcome: Outcome) -> sections.LossCurve:
    run = outcome.home / "model"
    resumed = [int(event["step"]) for event in read_events(run) if event["event"] == "resumed"]
    marks = [sections.Mark(step=outcome.resume.killed_after_step, label="killed")]
    marks += [sections.Mark(step=step, label="resumed") for step in resumed]
    curve = sections.Curve.of(read_metrics(run), "loss")
    return sections.LossCurve(title="How it learned", curves=(curve,), marks=tuple(marks))
