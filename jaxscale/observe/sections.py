"""The sections that a report is made of: frozen data, each with the HTML of its body."""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

from jaxscale.observe import charts
from jaxscale.observe.markup import Html, element, join, table
from jaxscale.observe.units import format_bytes, format_seconds

_MAX_SNIPPET_CHARACTERS = 280
_MAX_TILES = 16  # more in a row of a small drawing are a grey smear
_MAX_HALF_ROW_CHARACTERS = 42  # a longer pair of the environment takes a row of its own


class Section(Protocol):
    """A titled part of a report."""

    @property
    def title(self) -> str:
        """The heading."""

    def body(self) -> Html:
        """What stands below the heading."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Note:
    """Paragraphs of text, then a list."""

    title: str
    paragraphs: tuple[str, ...] = ()
    items: tuple[str, ...] = ()

    def body(self) -> Html:
        """The paragraphs and the list."""
        items = [element("ul", *(element("li", item) for item in self.items))] if self.items else []
        return join([*(element("p", text) for text in self.paragraphs), *items])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was put to the test, whether it held, and how it was tested."""

    name: str
    passed: bool
    detail: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checks:
    """What was put to the test, and whether it held."""

    title: str
    checks: tuple[Check, ...]
    text: str = ""

    def body(self) -> Html:
        """One line a check, its outcome in words as well as in colour."""
        return join([_text(self.text), element("ul", *map(_check, self.checks), class_="checks")])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """Values over training steps."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, float]], metric: str, name: str = "") -> Self:
        """The curve of one metric, out of the rows of metrics.jsonl that have it."""
        found = [(int(row["step"]), float(row[metric])) for row in rows if metric in row]
        return cls(name=name or metric, steps=tuple(s for s, _ in found), values=tuple(v for _, v in found))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """A step at which something happened to the run: `killed`, `resumed`."""

    step: int
    label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossCurve:
    """Up to three curves over training steps, with marks where the run was killed or resumed."""

    title: str
    curves: tuple[Curve, ...]
    marks: tuple[Mark, ...] = ()
    text: str = ""
    y_label: str = "loss"

    def __post_init__(self) -> None:
        if len(self.curves) > charts.MAX_CURVES:
            raise ValueError(f"curves: got {len(self.curves)}, expected at most {charts.MAX_CURVES} in one chart")

    def body(self) -> Html:
        """The chart and its caption."""
        if not any(curve.steps for curve in self.curves):
            return join([_text(self.text), element("p", "The run logged no values.")])
        chart = charts.line_chart(
            [(curve.name, curve.steps, curve.values) for curve in self.curves if curve.steps],
            [(mark.step, mark.label) for mark in self.marks],
            y_label=self.y_label,
            description=" ".join([*map(_in_words, self.curves), *(f"{m.label} at step {m.step}." for m in self.marks)]),
        )
        width = charts.smoothing_width(max(len(curve.steps) for curve in self.curves))
        how = f" Faint: as logged; line: moving mean over {width} rows." if width > 1 else ""
        caption = " ".join(map(_in_words, self.curves)) + how
        return join([_text(self.text), element("figure", chart, element("figcaption", caption))])


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRow:
    """Where one array lives: `axes[i]` names the mesh axes that dim i is split over."""

    leaf: str
    shape: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]
    bytes_per_device: int
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanTable:
    """Where each array lives on a mesh, and why."""

    title: str
    mesh: tuple[tuple[str, int], ...]
    rows: tuple[PlanRow, ...]
    text: str = ""

    def body(self) -> Html:
        """The table; each array drawn as the tiles that its devices hold."""
        shape = " × ".join(f"{axis} {size}" for axis, size in self.mesh if size > 1) or "one device"
        total = sum(row.bytes_per_device for row in self.rows)
        caption = f"{len(self.rows)} arrays on the mesh {shape}; {format_bytes(total)} on each device"
        columns = ("array", "its tiles", "shape and split", "per device", "why")
        groups = [
            (_breakable(parent), [self._cells(row, parent) for row in rows])
            for parent, rows in itertools.groupby(self.rows, lambda row: _parent(row.leaf))
        ]
        return join([_text(self.text), table(caption, columns, groups, numeric=frozenset({3}))])

    def _cells(self, row: PlanRow, parent: str) -> tuple[str, ...]:
        sizes = dict(self.mesh)
        parts = [math.prod(sizes[axis] for axis in axes) for axes in row.axes]
        copies = math.prod(sizes.values()) // math.prod(parts)
        dims = [_dim(size, axes) for size, axes in zip(row.shape, row.axes, strict=True)]
        split = join(dims or ["scalar"], " × ")
        if copies > 1:
            whole = "whole on each device" if math.prod(parts) == 1 else f"{copies} copies"
            split = join([split, element("span", whole, class_="copies")])
        return (
            element("code", _breakable(row.leaf.removeprefix(parent))),
            _tiles(parts),
            element("span", split, class_="split"),
            format_bytes(row.bytes_per_device),
            row.reason,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """A mean with the ends of its confidence interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsTable:
    """Systems by measures, with confidence intervals; the first measure is charted too."""

    title: str
    measures: tuple[str, ...]
    systems: tuple[tuple[str, tuple[Score, ...]], ...]
    caption: str
    text: str = ""

    def body(self) -> Html:
        """The chart of the first measure, then the table; the best of each column stands out."""
        best = [max(scores[i].value for _, scores in self.systems) for i in range(len(self.measures))]
        firsts = [(name, scores[0].value, scores[0].low, scores[0].high) for name, scores in self.systems]
        words = "; ".join(f"{name} {value:.3f}, from {low:.3f} to {high:.3f}" for name, value, low, high in firsts)
        chart = charts.interval_chart(
            firsts, x_label=self.measures[0], description=f"{self.measures[0]} with its interval: {words}."
        )
        rows = [
            (name, *(_score(score, score.value == top) for score, top in zip(scores, best, strict=True)))
            for name, scores in self.systems
        ]
        numeric = frozenset(range(1, len(self.measures) + 1))
        return join(
            [
                _text(self.text),
                element("figure", chart),
                table(self.caption, ("", *self.measures), [("", rows)], numeric=numeric),
            ]
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hit:
    """One search result."""

    title: str
    text: str
    score: float
    expected: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """A query and its results, best first."""

    query: str
    hits: tuple[Hit, ...]
    system: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searches:
    """Searches as they were run, with what they found."""

    title: str
    searches: tuple[Search, ...]
    text: str = ""

    def body(self) -> Html:
        """A card for each search."""
        return join([_text(self.text), *map(_search, self.searches)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timings:
    """How long each phase took, in the order in which they ran."""

    title: str
    phases_s: tuple[tuple[str, float], ...]
    text: str = ""

    def body(self) -> Html:
        """The table, with a bar for each phase's share."""
        total = sum(seconds for _, seconds in self.phases_s)
        rows = [
            (name, _bar(seconds / total if total else 0.0), format_seconds(seconds)) for name, seconds in self.phases_s
        ]
        caption = f"{format_seconds(total)} in all"
        return join(
            [_text(self.text), table(caption, ("phase", "share", "time"), [("", rows)], numeric=frozenset({2}))]
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment:
    """What the run ran on: a snapshot of `jaxscale.observe.environment`, or any nested mapping."""

    title: str
    snapshot: Mapping[str, Any]
    text: str = ""

    def body(self) -> Html:
        """The snapshot as a list of names and values; what is empty is left out."""
        pairs = [_pair(name, value) for name, value in _flatten(self.snapshot)]
        return join([_text(self.text), element("dl", *pairs, class_="environment")])


def _text(text: str) -> Html:
    return join([element("p", paragraph) for paragraph in text.split("\n\n")]) if text else Html()


def _check(check: Check) -> Html:
    outcome = element("span", "held" if check.passed else "failed", class_="good" if check.passed else "bad")
    return element("li", outcome, element("span", element("strong", check.name), " ", check.detail))


def _in_words(curve: Curve) -> str:
    if not curve.steps:
        return f"{curve.name}: nothing logged."
    first, last = curve.values[0], curve.values[-1]
    return f"{curve.name}: {first:.4g} at step {curve.steps[0]}, {last:.4g} at step {curve.steps[-1]}."


def _dim(size: int, axes: tuple[str, ...]) -> Html:
    return join([str(size), *(element("span", axis, class_="axis") for axis in axes)])


def _parent(leaf: str) -> str:
    """The part of a path that heads a group: all but its last two names, with the slash after it.

    >>> _parent("towers/shared/attention/key/bias"), _parent("temperature")
    ('towers/shared/attention/', '')
    """
    return "".join(part + "/" for part in leaf.split("/")[:-2])


def _breakable(name: str) -> Html:
    """A qualified name or a path that may be broken after its dots and slashes."""
    parts = re.split(r"(?<=[./])", name)
    return join(parts, "<wbr>")


def _tiles(parts: list[int]) -> Html:
    """A small drawing of an array cut into its parts, one of them filled: what one device holds."""
    cuts = [part for part in parts if part > 1]
    if len(cuts) == 1 and len(parts) > 1 and parts[-1] > 1:
        cuts = [1, *cuts]  # the last dim alone is cut: side by side
    num_rows = min(cuts[0], _MAX_TILES) if cuts else 1
    num_columns = min(math.prod(cuts[1:]), _MAX_TILES)
    width, height = 48, 32
    tile = f"M0 0h{width / num_columns:g}v{height / num_rows:g}H0z"
    lines = [f"M0 {height * i / num_rows:g}h{width}" for i in range(1, num_rows)]
    lines += [f"M{width * i / num_columns:g} 0v{height}" for i in range(1, num_columns)]
    return element(
        "svg",
        element("path", d=tile, class_="held"),
        element("path", d="".join([f"M0 0h{width}v{height}H0z", *lines]), class_="cuts"),
        class_="tiles",
        viewBox=f"-1 -1 {width + 2} {height + 2}",
        aria_hidden="true",
    )


def _score(score: Score, is_best: bool) -> Html:
    value = element("strong" if is_best else "span", f"{score.value:.3f}")
    return join([value, element("small", f"{score.low:.3f} to {score.high:.3f}")])


def _search(search: Search) -> Html:
    system = [element("span", search.system, class_="system")] if search.system else []
    hits = element("ol", *map(_hit, search.hits)) if search.hits else element("p", "Nothing was found.")
    return element("article", element("h3", search.query, *system), hits, class_="search")


def snippet(text: str) -> str:
    """The beginning of a text on one line, cut after a word.

    >>> snippet("  One\\n line. ")
    'One line.'
    """
    text = " ".join(text.split())
    if len(text) > _MAX_SNIPPET_CHARACTERS:
        return text[:_MAX_SNIPPET_CHARACTERS].rsplit(" ", 1)[0] + " …"
    return text


def _hit(hit: Hit) -> Html:
    expected = [element("span", "expected", class_="expected")] if hit.expected else []
    score = element("span", f"{hit.score:.3f}", class_="score")
    return element("li", element("code", _breakable(hit.title)), *expected, score, element("p", snippet(hit.text)))


def _bar(share: float) -> Html:
    fill = element("span", style=f"width:{100 * share:.1f}%")
    words = "under 1%" if 0 < share < 0.005 else f"{share:.0%}"
    return element(
        "span", element("span", fill, class_="bar", aria_hidden="true"), element("small", words), class_="share"
    )


def _pair(name: str, value: str) -> Html:
    words = join([element("span", word) for word in value.split()], " ")
    is_long = len(name) + len(value) > _MAX_HALF_ROW_CHARACTERS
    return element(
        "div", element("dt", name), element("dd", element("code", words)), class_="long" if is_long else None
    )


def _flatten(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flatten(value)
        elif name.endswith("_bytes") and isinstance(value, int):
            pairs.append((name.removesuffix("_bytes"), format_bytes(value)))
        elif value is not None and value != "":
            pairs.append((name, str(value)))
    return pairs
