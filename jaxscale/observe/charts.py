"""Charts as inline SVG that take their colours and their font from the page around them.

Each chart is drawn twice, for a wide and for a narrow screen; the page's style sheet shows one of the two. A drawing
is a pure function of its data: no date, and ids that are hashes of what they name.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from jaxscale.observe.markup import Html, element

# Colours drawn by matplotlib and the variables of the page's style sheet that take their place.
_INK, _MUTED, _RULE, _PAPER, _WARM = "#010101", "#020202", "#030303", "#040404", "#050505"
_SERIES = ("#0a0001", "#0a0002", "#0a0003")
MAX_CURVES = len(_SERIES)
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _RULE: "var(--rule)",
    _PAPER: "var(--paper)",
    _WARM: "var(--warm)",
    **{color: f"var(--series-{number})" for number, color in enumerate(_SERIES, 1)},
}
_WIDTHS_PX = {"wide": 760, "narrow": 340}
_PX_PER_INCH = 72  # the SVG backend's unit, so that one unit of a drawing is one pixel of the page

_LINE_CHART_HEIGHT_PX = 270
_ROW_PX = 18  # a row of labels above a chart
_LABEL_PX = 6.8  # about the width of a character of such a label

_LIGHTEST = 0.25  # what the shades of several groups start above
_TICK_PX = 56  # room for the label of a tick
_STYLE = Path(__file__).with_name("report.css")

# Above this number of points a curve is drawn as a moving mean over its faint points.
_MANY_POINTS = 60


def line_chart(
    curves: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    marks: Sequence[tuple[float, str]],
    *,
    y_label: str,
    description: str,
) -> Html:
    """Curves over training steps.

    Args:
      curves: at most `MAX_CURVES`; a name, the steps and the values of each. Non-finite values leave a gap.
      marks: steps at which something happened, and what.
      y_label: what the values are.
      description: the chart in words, for those who do not see it.
    """

    def draw(axes: Axes, width_px: int) -> None:
        for color, (name, steps, values) in zip(_SERIES, curves, strict=False):
            _draw_curve(axes, color, np.asarray(steps, float), np.asarray(values, float))
            axes.plot([], [], color=color, label=_short(name, width_px))
        axes.margins(x=0.01)
        ordered = [(step, _short(label, width_px)) for step, label in sorted(marks)]
        places = _place_labels(axes, ordered, width_px)
        _draw_marks(axes, ordered, places)
        above_px = _ROW_PX * (1 + max((level for _, level in places), default=-1))
        if len(curves) > 1:
            corner = (1, 1 + above_px / _LINE_CHART_HEIGHT_PX)
            axes.legend(
                frameon=False, labelcolor=_INK, loc="lower right", bbox_to_anchor=corner, ncols=len(curves), borderpad=0
            )
        axes.set_title(_short(y_label, width_px), loc="left", color=_MUTED, fontsize=12, pad=10 + above_px)
        axes.set_xlabel("step", color=_MUTED)
        axes.grid(axis="y", color=_RULE, linewidth=1)

    return _figure(draw, height_px=_LINE_CHART_HEIGHT_PX, description=description)


def interval_chart(
    rows: Sequence[tuple[str, float, float, float]], *, x_label: str, description: str, signed: bool = False
) -> Html:
    """One dot with its interval a row, the first row on top.

    Args:
      rows: name, value, low, high.
      x_label: what the values are.
      description: the chart in words, for those who do not see it.
      signed: whether the values are differences, which are drawn about a line at 0 and written with their sign.
    """

    def draw(axes: Axes, width_px: int) -> None:
        places = range(len(rows))[::-1]
        for place, (_, value, low, high) in zip(places, rows, strict=True):
            axes.plot([low, high], [place, place], color=_SERIES[0], linewidth=3, alpha=0.45, solid_capstyle="round")
            axes.plot([value], [place], "o", color=_SERIES[0], markersize=8)
            axes.annotate(
                f"{value:{'+' if signed else ''}.3f}",
                (value, place),
                (0, 9),
                textcoords="offset points",
                ha="center",
                color=_INK,
                fontsize=12,
            )
        axes.set_yticks(list(places), [_short(name, width_px) for name, *_ in rows], color=_INK, fontsize=13)
        axes.set_ylim(-0.5, len(rows) - 0.3)
        if signed:
            widest = max(*(abs(end) for *_, low, high in rows for end in (low, high)), 1e-3) * 1.06
            axes.set_xlim(-widest, widest)
            axes.axvline(0, color=_MUTED, linewidth=1)
        else:
            axes.set_xlim(left=0, right=max(high for *_, high in rows) * 1.06)
        axes.set_xlabel(_short(x_label, width_px), color=_MUTED)
        axes.grid(axis="x", color=_RULE, linewidth=1)
        axes.spines["bottom"].set_visible(False)

    return _figure(draw, height_px=60 + 46 * len(rows), description=description)


def difference_chart(differences: Sequence[float], *, x_label: str, y_label: str, description: str) -> Html:
    """A bar for each of many differences, the greatest first: gains above the line at 0, losses below it.

    Args:
      differences: at least one.
      x_label: what they are of.
      y_label: what they are.
      description: the chart in words, for those who do not see it.
    """
    ordered = np.sort(np.asarray(differences, float))[::-1]
    edges = np.arange(len(ordered) + 1)

    def draw(axes: Axes, width_px: int) -> None:
        for color, part in ((_SERIES[2], ordered.clip(min=0)), (_WARM, ordered.clip(max=0))):
            axes.stairs(part, edges, fill=True, color=color, linewidth=0)
        axes.axhline(0, color=_MUTED, linewidth=1)
        widest = max(float(np.abs(ordered).max()), 1e-3) * 1.06
        axes.set_ylim(-widest, widest)
        axes.margins(x=0)
        axes.set_title(_short(y_label, width_px), loc="left", color=_MUTED, fontsize=12, pad=10)
        axes.set_xlabel(_short(x_label, width_px), color=_MUTED)
        axes.grid(axis="y", color=_RULE, linewidth=1)

    return _figure(draw, height_px=_LINE_CHART_HEIGHT_PX, description=description)


def law_chart(
    curves: Sequence[tuple[str, Sequence[float], Sequence[float], Sequence[tuple[float, float]]]],
    *,
    x_label: str,
    y_label: str,
    description: str,
) -> Html:
    """Measured losses as dots over a size, a law as a line through each group of them; the size's scale is logarithmic.

    Args:
      curves: of each group a name, sizes above 0, losses, and the places and losses of its line, which may be none.
        Later groups are darker.
      x_label: what the size is.
      y_label: what the losses are.
      description: the chart in words, for those who do not see it.
    """
    places = sorted({size for _, sizes, _, _ in curves for size in sizes})

    def draw(axes: Axes, width_px: int) -> None:
        axes.set_xscale("log")
        for number, (_, sizes, losses, law) in enumerate(curves, 1):
            shade = _LIGHTEST + (1 - _LIGHTEST) * number / len(curves)
            axes.plot(*zip(*law, strict=True) if law else ([], []), color=_SERIES[0], linewidth=2, alpha=shade)
            axes.plot(sizes, losses, "o", color=_SERIES[0], markersize=6, alpha=shade)
        low, high = axes.get_ylim()
        heights = [(losses[-1] - low) / (high - low) * _LINE_CHART_HEIGHT_PX for _, _, losses, _ in curves]
        for (name, sizes, losses, _), height, moved in zip(curves, heights, _apart(heights), strict=True):
            axes.annotate(
                _short(name, width_px),
                (sizes[-1], losses[-1]),
                (8, moved - height),
                textcoords="offset points",
                va="center",
                color=_INK,
                fontsize=12,
            )
        axes.margins(x=0.02)
        every = -(-len(places) * _TICK_PX // width_px)
        shown = places[::every]
        axes.set_xticks(shown, [short_number(place) for place in shown])
        axes.minorticks_off()
        axes.set_title(_short(y_label, width_px), loc="left", color=_MUTED, fontsize=12, pad=10)
        axes.set_xlabel(_short(x_label, width_px), color=_MUTED)
        axes.grid(axis="y", color=_RULE, linewidth=1)

    return _figure(draw, height_px=_LINE_CHART_HEIGHT_PX, description=description)


def scatter_chart(points: Sequence[tuple[str, float, float]], *, x_label: str, y_label: str, description: str) -> Html:
    """A named dot for each pair of values, the best of both towards the upper right.

    Args:
      points: name, x and y.
      x_label: what x is.
      y_label: what y is.
      description: the chart in words, for those who do not see it.
    """

    def draw(axes: Axes, width_px: int) -> None:
        for name, x, y in points:
            axes.plot([x], [y], "o", color=_SERIES[0], markersize=8)
            label = _short(name, width_px)
            axes.annotate(label, (x, y), (0, 9), textcoords="offset points", ha="center", color=_INK)
        axes.margins(0.12, 0.2)
        axes.set_title(_short(y_label, width_px), loc="left", color=_MUTED, fontsize=12, pad=10)
        axes.set_xlabel(_short(x_label, width_px), color=_MUTED)
        axes.grid(axis="y", color=_RULE, linewidth=1)

    return _figure(draw, height_px=_LINE_CHART_HEIGHT_PX, description=description)


def _apart(heights: Sequence[float]) -> list[float]:
    """The heights of labels, moved up where one would overlap the next lower one.

    >>> _apart([30.0, 100.0, 26.0])
    [44.0, 100.0, 26.0]
    """
    moved, below = list(heights), -math.inf
    for index in sorted(range(len(heights)), key=lambda index: heights[index]):
        moved[index] = below = max(heights[index], below + _ROW_PX)
    return moved


def short_number(value: float) -> str:
    """A number in three digits and the letter of its size.

    >>> [short_number(value) for value in (640.0, 12_288.0, 3_000_000.0)]
    ['640', '12.3k', '3M']
    """
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}"


def picture(chart: Html) -> str:
    """The wide drawing of a chart as an SVG file that needs nothing beside it and follows light and dark.

    Args:
      chart: as a function of this module returns it.
    """
    drawing = chart[chart.index("<svg") : chart.index("</svg>") + len("</svg>")]
    start = drawing.index(">") + 1
    rules = _STYLE.read_text(encoding="utf-8")
    variables = rules[: rules.index("\n* {")]
    style = element("style", Html(variables + "\nsvg { background: var(--paper); font-family: var(--sans); }\n"))
    head = drawing[: start - 1] + ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return head + style + drawing[start:] + "\n"


def moving_mean(values: Sequence[float] | np.ndarray, width: int) -> np.ndarray:
    """The mean of up to `width` values around each one; fewer at the ends, non-finite ones left out.

    >>> moving_mean([1.0, 2.0, 6.0, 2.0], 3).tolist()
    [1.5, 3.0, 3.3333333333333335, 4.0]
    """
    array = np.asarray(values, float)
    finite = np.isfinite(array)
    half = width // 2
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, array, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    low = np.clip(np.arange(len(array)) - half, 0, None)
    high = np.clip(np.arange(len(array)) + half + 1, None, len(array))
    num = counts[high] - counts[low]
    return np.where(num > 0, (sums[high] - sums[low]) / np.maximum(num, 1), np.nan)


def smoothing_width(num_points: int) -> int:
    """How many points the drawn line is the mean of: 1 where there are few."""
    return 1 if num_points <= _MANY_POINTS else max(3, num_points // 40) | 1


def _draw_curve(axes: Axes, color: str, steps: np.ndarray, values: np.ndarray) -> None:
    values = np.where(np.isfinite(values), values, np.nan)
    width = smoothing_width(len(values))
    if width > 1:
        axes.plot(steps, values, color=color, linewidth=1, alpha=0.28)
    axes.plot(steps, moving_mean(values, width), color=color, linewidth=2)


def _short(label: str, width_px: int) -> str:
    """The label, cut where it would take more than about a third of the chart's width."""
    most = width_px // 20
    return label if len(label) <= most else label[: most - 1] + "…"


def _place_labels(axes: Axes, marks: Sequence[tuple[float, str]], width_px: int) -> list[tuple[str, int]]:
    """The side of its line and the row above the chart of each mark's label, so that no two overlap."""
    low, high = axes.get_xlim()
    places = [(step - low) / max(high - low, 1e-9) * width_px for step, _ in marks]
    taken: list[tuple[int, float, float]] = []
    chosen = []
    for index, (x, (_, label)) in enumerate(zip(places, marks, strict=True)):
        length = _LABEL_PX * len(label) + 10
        spans = {"right": (x - length, x), "left": (x, x + length)}
        crowded = index + 1 < len(marks) and places[index + 1] < x + length
        sides = ("right", "left") if (crowded and x > length) or x + length > width_px else ("left", "right")
        level, side = next(
            (level, side)
            for level in range(len(marks))
            for side in sides
            if not any(level == at and spans[side][0] < end and start < spans[side][1] for at, start, end in taken)
        )
        taken.append((level, *spans[side]))
        chosen.append((side, level))
    return chosen


def _draw_marks(axes: Axes, marks: Sequence[tuple[float, str]], places: list[tuple[str, int]]) -> None:
    for (step, label), (side, level) in zip(marks, places, strict=True):
        axes.axvline(step, color=_WARM, linewidth=1.5, dashes=(3, 3))
        axes.annotate(
            label,
            (step, 1),
            (5 if side == "left" else -5, 5 + _ROW_PX * level),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha=side,
            color=_WARM,
            fontsize=12,
        )


def _figure(draw: Callable[[Axes, int], None], *, height_px: int, description: str) -> Html:
    drawings = [_svg(draw, name, width, height_px, description) for name, width in _WIDTHS_PX.items()]
    return element("div", *drawings, class_="chart")


def _svg(draw: Callable[[Axes, int], None], name: str, width_px: int, height_px: int, description: str) -> Html:
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # the hidden drawing of the two must not own what the other refers to
        "text.parse_math": False,
        "font.size": 12,
        "axes.edgecolor": _RULE,
        "xtick.color": _RULE,
        "ytick.color": _RULE,
        "xtick.labelcolor": _MUTED,
        "ytick.labelcolor": _MUTED,
        "ytick.major.size": 0,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width_px / _PX_PER_INCH, height_px / _PX_PER_INCH), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.spines[["top", "right", "left"]].set_visible(False)
        draw(axes, width_px)
        out = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=no_metadata)
    return _inline(out.getvalue(), name, width_px, height_px, description)


def _inline(document: str, name: str, width_px: int, height_px: int, description: str) -> Html:
    """The drawing of an SVG document as an element of a page."""
    body = document[document.index("<svg") :]
    body = body[body.index(">") + 1 : body.rindex("</svg>")]
    body = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # ids of groups repeat from drawing to drawing; nothing refers to them
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font-size: \1", body)
    body = re.sub("#0[0-9a]000[1-9]|#0[1-5]0[1-5]0[1-5]", lambda match: _VARIABLES[match.group()], body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    return element(
        "svg", Html(body), class_=name, viewBox=f"0 0 {width_px} {height_px}", role="img", aria_label=description
    )
