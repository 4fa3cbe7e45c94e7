"""From the points of a family to its laws: in size, in data, in both, and the largest run foretold by the others."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

from jaxscale import typed_json
from jaxscale.errors import DataError
from jaxscale.scaling import HeldOut, Law, fit_law, hold_out_largest

T = TypeVar("T")

# The sizes of a law, and what they are of a point.
SIZE_FIELDS = {"N": "num_params", "D": "num_pairs"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """What one run of a family came to; a line of points.jsonl, see docs/formats/scaling-study.md.

    Attributes:
      size: its name.
      num_layers: of each tower.
      width: d_model.
      num_params: N, outside the tables of tokens, positions and token types.
      num_pairs: D, different labelled pairs.
      num_steps: of training.
      contrastive_entropy: in nats.
      state_hash: of the final state.
    """

    size: str
    num_layers: int
    width: int
    num_params: int
    num_pairs: int
    num_steps: int
    contrastive_entropy: float
    state_hash: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Laws:
    """The laws of a family; None where its runs can't tell one.

    Attributes:
      by_size: L(N) of the runs with the most pairs.
      by_pairs: L(D) of the runs of the largest size.
      joint: L(N, D) of all runs.
      held_out: the largest run, and what the joint law of all others says of it.
      refused: why there is no such law, by field.
    """

    by_size: Law | None
    by_pairs: Law | None
    joint: Law | None
    held_out: HeldOut | None
    refused: dict[str, str]


def fit_laws(points: Sequence[Point]) -> Laws:
    """Fits what the points can tell; a pure function of them."""
    refused: dict[str, str] = {}

    def told(name: str, fit: Callable[[], T]) -> T | None:
        try:
            return fit()
        except DataError as error:
            refused[name] = str(error)
            return None

    most_pairs = max(point.num_pairs for point in points)
    largest = max(point.num_params for point in points)
    with_most_pairs = [point for point in points if point.num_pairs == most_pairs]
    of_largest_size = [point for point in points if point.num_params == largest]
    joint = told("joint", lambda: fit_law(_sizes(points, "ND"), _losses(points)).law)
    if joint is None:
        refused["held_out"] = refused["joint"]
    return Laws(
        by_size=told("by_size", lambda: fit_law(_sizes(with_most_pairs, "N"), _losses(with_most_pairs)).law),
        by_pairs=told("by_pairs", lambda: fit_law(_sizes(of_largest_size, "D"), _losses(of_largest_size)).law),
        joint=joint,
        held_out=None
        if joint is None
        else told("held_out", lambda: hold_out_largest(_sizes(points, "ND"), _losses(points))),
        refused=refused,
    )


def render(points: Sequence[Point], laws: Laws) -> str:
    """The table of the points, and below it the laws, for a terminal."""
    rows = [f"{'run':<12}{'N':>13}{'D':>10}{'steps':>8}{'entropy':>10}"]
    rows += [
        f"{p.size:<12}{p.num_params:>13,}{p.num_pairs:>10,}{p.num_steps:>8,}{p.contrastive_entropy:>10.4f}"
        for p in points
    ]
    for name in ("by_size", "by_pairs", "joint"):
        rows.append("")
        law: Law | None = getattr(laws, name)
        rows += [f"{name}: not fitted: {laws.refused[name]}"] if law is None else law_lines(law)
    return "\n".join([*rows, "", held_out_line(laws)])


def law_lines(law: Law) -> list[str]:
    """A law, and its numbers with their intervals."""
    numbers = [("E", law.irreducible)]
    for term in law.terms:
        numbers += [(f"coefficient of {term.size}", term.coefficient), (f"exponent of {term.size}", term.exponent)]
    lines = [
        f"  {name:<18}{number.value:>12.4g}   {law.level:.0%}: {number.low:.4g} to {number.high:.4g}"
        for name, number in numbers
    ]
    return [f"{law}   ({law.num_points} runs, off by {law.rms_residual:.2%} rms)", *lines]


def held_out_line(laws: Laws) -> str:
    """How far off the largest run was predicted, in one line."""
    held_out = laws.held_out
    if held_out is None:
        return f"held out: not predicted: {laws.refused['held_out']}"
    at = ", ".join(f"{name} = {value:,.0f}" for name, value in held_out.sizes.items())
    predicted = held_out.predicted
    return (
        f"held out ({at}): measured {held_out.measured:.4f}, predicted {predicted.value:.4f} ({predicted.low:.4f} to "
        f"{predicted.high:.4f}), {held_out.relative_error:+.2%}, {'within' if held_out.within else 'outside'} the "
        "interval"
    )


def points_to_lines(points: Sequence[Point]) -> str:
    """The text of points.jsonl."""
    return "".join(typed_json.canonical(point).decode() + "\n" for point in points)


def _sizes(points: Sequence[Point], names: str) -> dict[str, list[float]]:
    """The points' sizes by the letters of the law."""
    return {name: [float(getattr(point, SIZE_FIELDS[name])) for point in points] for name in names}


def _losses(points: Sequence[Point]) -> list[float]:
    return [point.contrastive_entropy for point in points]
