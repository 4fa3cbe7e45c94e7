"""The page of two runs compared: what differs on the whole, then every query with what both runs show for it."""

from collections.abc import Mapping

from jaxscale.observe import report
from jaxscale.observe.comparison_sections import (
    Change,
    Changes,
    ComparedQueries,
    ComparedQuery,
    Differences,
    FoundBy,
    FoundPassage,
    RelevantPassage,
    styles,
)
from jaxscale.observe.sections import Score
from retrieval.comparison.queries import QueryComparison, RunComparison, Shown
from retrieval.records import Doc

_NUM_OPEN = 1  # enough to show that a line opens
_MISSING = "The run does not have this query, which counts as zero."


def comparison_report(comparison: RunComparison) -> report.Report:
    """The page as data."""
    first, second = comparison.names
    counts = f"{len(comparison.won)} won, {len(comparison.lost)} lost, {len(comparison.equal)} equal"
    difference = comparison.difference
    return report.Report(
        title=f"{first} → {second}",
        summary=f"Two runs on the same {len(comparison.queries):,} judged queries, by {comparison.measure}: {counts}.",
        facts=(
            report.Fact(value=f"{comparison.a.mean:.3f}", label=f"{comparison.measure} of {first}"),
            report.Fact(value=f"{comparison.b.mean:.3f}", label=f"{comparison.measure} of {second}"),
            report.Fact(
                value=f"{difference.mean:+.3f}", label=f"difference, {difference.low:+.3f} to {difference.high:+.3f}"
            ),
            report.Fact(value=f"{comparison.p:.4f}", label="p, paired randomisation, two-sided"),
        ),
        sections=(
            _means(comparison),
            Differences(
                title="Query by query",
                values=tuple(query.difference for query in comparison.queries),
                y_label=f"difference in {comparison.measure}",
                caption=f"A bar for each query: {second} less {first}. {counts}.",
            ),
            _queries(f"Won by {second}", comparison, comparison.won, "the most won first"),
            _queries(f"Lost by {second}", comparison, comparison.lost, "the most lost first"),
            _queries("Equal", comparison, comparison.equal, "by their ids", num_open=0),
        ),
        styles=styles(),
    )


def _means(comparison: RunComparison) -> Changes:
    difference = comparison.difference
    change = Change(
        name=" → ".join(comparison.names),
        before=comparison.a.mean,
        after=comparison.b.mean,
        difference=Score(value=difference.mean, low=difference.low, high=difference.high),
        p=comparison.p,
    )
    a, b = comparison.a, comparison.b
    return Changes(
        title="On the whole",
        groups=((comparison.measure, (change,)),),
        caption="95 % bootstrap intervals over queries; p of a two-sided paired randomisation test",
        text=(
            f"{comparison.names[0]}: {a.mean:.3f}, {a.low:.3f} to {a.high:.3f}. "
            f"{comparison.names[1]}: {b.mean:.3f}, {b.low:.3f} to {b.high:.3f}. "
            "Means are over all judged queries; one that a run lacks counts as zero."
        ),
    )


def _queries(
    title: str,
    comparison: RunComparison,
    queries: tuple[QueryComparison, ...],
    order: str,
    *,
    num_open: int = _NUM_OPEN,
) -> ComparedQueries:
    return ComparedQueries(
        title=title,
        queries=tuple(_query(query, comparison) for query in queries),
        num_open=num_open,
        text=f"{len(queries):,} queries, {order}. A line opens to show what both runs found.",
    )


def _query(query: QueryComparison, comparison: RunComparison) -> ComparedQuery:
    relevant_ids = {doc_id for doc_id, _, _ in query.relevant}

    def found(system: str, shown: Shown) -> FoundBy:
        return FoundBy(
            system=system,
            value=shown.value,
            passages=tuple(
                FoundPassage(
                    rank=rank,
                    doc_id=doc_id,
                    title=comparison.docs[doc_id].title,
                    text=comparison.docs[doc_id].text,
                    relevant=doc_id in relevant_ids,
                )
                for rank, doc_id in enumerate(shown.doc_ids, 1)
            ),
            note=_MISSING if shown.missing else "",
        )

    first, second = comparison.names
    return ComparedQuery(
        query_id=query.query_id,
        text=query.text,
        found=(found(first, query.a), found(second, query.b)),
        relevant=tuple(
            RelevantPassage(doc_id=doc_id, title=_title(doc_id, comparison.docs), ranks=(rank_a, rank_b))
            for doc_id, rank_a, rank_b in query.relevant
        ),
    )


def _title(doc_id: str, docs: Mapping[str, Doc]) -> str:
    return docs[doc_id].title if doc_id in docs else "not in the corpus:"
