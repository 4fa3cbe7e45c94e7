"""Sections that set two systems side by side: differences of means, and query by query what each of them found."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxscale.observe import charts
from jaxscale.observe.markup import Html, element, join, table
from jaxscale.observe.sections import Score, snippet

_STYLE = Path(__file__).with_name("comparison_sections.css")
_COLUMNS = ("", "from", "to", "difference", "p")


def styles() -> tuple[str, ...]:
    """The style sheets that a page with these sections needs beside the report's."""
    return (_STYLE.read_text(encoding="utf-8"),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """A mean that became another one.

    Attributes:
      name: of what.
      before: the one.
      after: the other.
      difference: `after` less `before`, with its interval.
      p: what a test says of it.
    """

    name: str
    before: float
    after: float
    difference: Score
    p: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changes:
    """Differences of means with their intervals, in groups; those of the first group are charted too."""

    title: str
    groups: tuple[tuple[str, tuple[Change, ...]], ...]
    caption: str
    text: str = ""

    def body(self) -> Html:
        """The chart of the first group, then the table."""
        name, changes = self.groups[0]
        rows = [(c.name, c.difference.value, c.difference.low, c.difference.high) for c in changes]
        words = "; ".join(f"{row} {value:+.3f}, from {low:+.3f} to {high:+.3f}" for row, value, low, high in rows)
        label = f"difference in {name}"
        chart = charts.interval_chart(rows, x_label=label, description=f"{label}: {words}.", signed=True)
        cells = [(group, [_cells(change) for change in changes]) for group, changes in self.groups]
        text = [element("p", self.text)] if self.text else []
        return join(
            [*text, element("figure", chart), table(self.caption, _COLUMNS, cells, numeric=frozenset({1, 2, 3, 4}))]
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Differences:
    """The differences of many queries as one picture."""

    title: str
    values: tuple[float, ...]
    y_label: str
    caption: str
    text: str = ""

    def body(self) -> Html:
        """The picture and its caption."""
        chart = charts.difference_chart(
            self.values, x_label="queries, the greatest gain first", y_label=self.y_label, description=self.caption
        )
        text = [element("p", self.text)] if self.text else []
        return join([*text, element("figure", chart, element("figcaption", self.caption))])


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundPassage:
    """A passage at its rank."""

    rank: int
    doc_id: str
    title: str
    text: str
    relevant: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundBy:
    """What one system found for a query.

    Attributes:
      system: its name.
      value: the measure.
      passages: the first ones that it found.
      note: what else there is to say of it; empty for nothing.
    """

    system: str
    value: float
    passages: tuple[FoundPassage, ...]
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelevantPassage:
    """A relevant passage and its rank in each system's list; None where it is not in it."""

    doc_id: str
    title: str
    ranks: tuple[int | None, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedQuery:
    """A query, what each of two systems found, and where its relevant passages stand."""

    query_id: str
    text: str
    found: tuple[FoundBy, FoundBy]
    relevant: tuple[RelevantPassage, ...]

    @property
    def difference(self) -> float:
        """The second system's value less the first one's."""
        return self.found[1].value - self.found[0].value


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedQueries:
    """Queries that open to show what each of two systems found; the first `num_open` are open."""

    title: str
    queries: tuple[ComparedQuery, ...]
    num_open: int = 0
    text: str = ""

    def body(self) -> Html:
        """A line for each query, with the lists of both systems behind it."""
        text = [element("p", self.text)] if self.text else []
        if not self.queries:
            return join([*text, element("p", "There are none.")])
        return join([*text, *(_query(query, number < self.num_open) for number, query in enumerate(self.queries))])


def _cells(change: Change) -> tuple[str, ...]:
    difference = change.difference
    return (
        change.name,
        f"{change.before:.3f}",
        f"{change.after:.3f}",
        join([f"{difference.value:+.3f}", element("small", f"{difference.low:+.3f} to {difference.high:+.3f}")]),
        f"{change.p:.4f}",
    )


def _query(query: ComparedQuery, is_open: bool) -> Html:
    kind = _kind(query.difference)
    first, second = query.found
    values = element("span", f"{first.value:.3f} → {second.value:.3f}", class_="values")
    head = element(
        "summary",
        element("span", f"{query.difference:+.3f}", class_=f"difference {kind}"),
        element("span", query.text or query.query_id, class_="asked"),
        values,
    )
    ranks = [_relevant(passage, (first.system, second.system)) for passage in query.relevant]
    relevant = element("ul", *ranks, class_="relevant") if ranks else element("p", "No passage is relevant to it.")
    lists = element("div", *map(_found, query.found), class_="lists")
    label = element("p", "query ", element("code", query.query_id), class_="label")
    return element("details", head, label, relevant, lists, class_="compared", open="" if is_open else None)


def _kind(difference: float) -> Literal["good", "bad", "same"]:
    return "good" if difference > 0 else "bad" if difference < 0 else "same"


def _relevant(passage: RelevantPassage, systems: tuple[str, str]) -> Html:
    ranks = [
        element("span", f"{system}: {'not found' if rank is None else f'rank {rank}'}", class_="rank")
        for system, rank in zip(systems, passage.ranks, strict=True)
    ]
    return element("li", *_named(passage.title, passage.doc_id), " ", *ranks)


def _named(title: str, doc_id: str) -> list[Html]:
    name = [element("strong", title), Html(" ")] if title.strip() else []
    return [*name, element("code", doc_id)]


def _found(found: FoundBy) -> Html:
    note = [element("p", found.note)] if found.note else []
    items = [
        element(
            "li",
            element("span", str(passage.rank), class_="rank"),
            *_named(passage.title, passage.doc_id),
            *([element("span", "relevant", class_="expected")] if passage.relevant else []),
            element("p", snippet(passage.text)),
            class_="held" if passage.relevant else None,
        )
        for passage in found.passages
    ]
    head = element("h3", found.system, element("small", f"{found.value:.3f}"))
    return element("div", head, *note, element("ol", *items))
