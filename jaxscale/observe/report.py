"""Writes a report: one HTML file that needs no network and reads well in light and in dark."""

import dataclasses
from pathlib import Path
from string import Template

from jaxscale.observe.markup import Html, element, join
from jaxscale.observe.sections import Section

_HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fact:
    """One figure that the page opens with, and what it is."""

    value: str
    label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """A page: a title, a paragraph that sums it up, a few figures, and sections; their own style sheets if need be."""

    title: str
    summary: str
    sections: tuple[Section, ...]
    facts: tuple[Fact, ...] = ()
    styles: tuple[str, ...] = ()


def write_report(path: Path, report: Report) -> None:
    """Writes the report as one self-contained file, replacing an old one as a whole."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(render(report), encoding="utf-8")
    draft.replace(path)


def render(report: Report) -> str:
    """The page's HTML, a pure function of the report.

    It refers to nothing outside itself, and its content security policy forbids the browser to fetch anything.
    """
    anchors = [f"section-{number}" for number in range(1, len(report.sections) + 1)]
    links = [
        element("li", element("a", section.title, href=f"#{anchor}"))
        for anchor, section in zip(anchors, report.sections, strict=True)
    ]
    facts = [element("div", element("dt", fact.label), element("dd", fact.value)) for fact in report.facts]
    sections = [
        element("section", element("h2", section.title, id=f"{anchor}-title"), section.body(), **_named(anchor))
        for anchor, section in zip(anchors, report.sections, strict=True)
    ]
    return Template((_HERE / "report.html").read_text(encoding="utf-8")).substitute(
        title=join([report.title]),
        style="\n".join([(_HERE / "report.css").read_text(encoding="utf-8"), *report.styles]),
        summary=join([report.summary]),
        facts=element("dl", *facts, class_="facts") if facts else Html(),
        links=join(links),
        sections=join(sections, "\n"),
    )


def _named(anchor: str) -> dict[str, str]:
    return {"id": anchor, "aria_labelledby": f"{anchor}-title"}
