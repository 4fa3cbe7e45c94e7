"""The page of a scaling study: its laws drawn through its points, and how far off the largest run was foretold."""

import itertools
from collections.abc import Sequence

import numpy as np

from jaxscale.observe import report, sections
from jaxscale.observe.charts import picture
from jaxscale.observe.law_sections import LawCurve, LawCurves
from jaxscale.scaling import Law
from retrieval.scaling.laws import SIZE_FIELDS, Laws, Point, held_out_line, law_lines

_NUM_DRAWN = 60  # places that a curve is drawn through


def study_report(points: Sequence[Point], laws: Laws) -> report.Report:
    """The page as data.

    Args:
      points: of the family's runs.
      laws: fitted to them.
    """
    exponents = [] if laws.joint is None else [(term.size, term.exponent) for term in laws.joint.terms]
    facts = [
        report.Fact(
            value=f"{exponent.value:.3f}", label=f"exponent of {size}, {exponent.low:.3f} to {exponent.high:.3f}"
        )
        for size, exponent in exponents
    ]
    if laws.held_out is not None:
        facts.append(report.Fact(value=f"{laws.held_out.relative_error:+.1%}", label="error on the run held out"))
    return report.Report(
        title="Scaling laws of dual towers",
        summary=(
            f"{len(points)} runs: contrastive entropy on dev queries against N, parameters outside the tables of "
            "embeddings, and D, labelled pairs. Lower is better."
        ),
        facts=tuple(facts),
        sections=(
            *_both_curves(points, laws),
            sections.Note(
                title="The laws",
                paragraphs=tuple(
                    f"{name}: not fitted: {laws.refused[name]}" if law is None else law_lines(law)[0]
                    for name, law in (("by size", laws.by_size), ("by pairs", laws.by_pairs), ("joint", laws.joint))
                    if law is not None or name in laws.refused
                ),
                items=() if laws.joint is None else tuple(" ".join(line.split()) for line in law_lines(laws.joint)[1:]),
            ),
            sections.Note(title="The largest run, foretold by the others", paragraphs=(held_out_line(laws),)),
        ),
    )


def drawings(points: Sequence[Point], laws: Laws) -> dict[str, str]:
    """The page's charts as SVG files, by the size they go along: `N` and `D`."""
    return {curves.x_label: picture(curves.chart()) for curves in _both_curves(points, laws)}


def _both_curves(points: Sequence[Point], laws: Laws) -> tuple[LawCurves, LawCurves]:
    return _curves("More parameters", points, laws.joint, "N"), _curves("More pairs", points, laws.joint, "D")


def _curves(title: str, points: Sequence[Point], joint: Law | None, along: str) -> LawCurves:
    """The points along one size, a curve for each value of the other."""
    other = "D" if along == "N" else "N"
    by_other = sorted(
        points, key=lambda point: (getattr(point, SIZE_FIELDS[other]), getattr(point, SIZE_FIELDS[along]))
    )
    ends = [getattr(point, SIZE_FIELDS[along]) for point in points]
    places = np.geomspace(min(ends), max(ends), _NUM_DRAWN)
    curves = []
    for value, group in itertools.groupby(by_other, lambda point: float(getattr(point, SIZE_FIELDS[other]))):
        members = list(group)
        curves.append(
            LawCurve(
                name=f"{other} = {value:,.0f}",
                sizes=tuple(float(getattr(point, SIZE_FIELDS[along])) for point in members),
                losses=tuple(point.contrastive_entropy for point in members),
                law=()
                if joint is None
                else tuple((float(x), joint.at({along: float(x), other: value})) for x in places),
            )
        )
    return LawCurves(
        title=title,
        curves=tuple(curves),
        x_label=along,
        y_label="entropy (nats)",
        text="Dots were measured; lines are the joint law." if joint is not None else "",
    )
