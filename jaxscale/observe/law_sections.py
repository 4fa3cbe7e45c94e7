"""The section of a page that draws a scaling law through the runs it was fitted to."""

import dataclasses

from jaxscale.observe import charts
from jaxscale.observe.markup import Html, element, join


@dataclasses.dataclass(frozen=True, kw_only=True)
class LawCurve:
    """Runs that differ in one size, and the law through them.

    Attributes:
      name: what they have in common.
      sizes: of the runs, above 0.
      losses: of the runs.
      law: places and losses to draw the law through; none where there is no law.
    """

    name: str
    sizes: tuple[float, ...]
    losses: tuple[float, ...]
    law: tuple[tuple[float, float], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LawCurves:
    """Several curves of a law over one size, on a logarithmic scale."""

    title: str
    curves: tuple[LawCurve, ...]
    x_label: str
    y_label: str
    text: str = ""

    @property
    def words(self) -> str:
        """The chart in words."""
        return " ".join(
            f"{curve.name}: {curve.losses[0]:.4g} at {self.x_label} = {curve.sizes[0]:,.0f}, {curve.losses[-1]:.4g} at "
            f"{curve.sizes[-1]:,.0f}."
            for curve in self.curves
        )

    def chart(self) -> Html:
        """The chart alone."""
        return charts.law_chart(
            [(curve.name, curve.sizes, curve.losses, curve.law) for curve in self.curves],
            x_label=self.x_label,
            y_label=self.y_label,
            description=self.words,
        )

    def body(self) -> Html:
        """The chart and its caption."""
        text = [element("p", self.text)] if self.text else []
        return join([*text, element("figure", self.chart(), element("figcaption", self.words))])
