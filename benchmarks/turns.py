"""The rows of a benchmark whose two sides took turns."""

import statistics
from collections.abc import Mapping
from typing import Any


def rows_of(
    found: Mapping[str, list[float]], dtype: str, ratio: str, *, benchmark: str, unit: str, digits: int | None = None
) -> list[dict[str, Any]]:
    """A row for each of two sides, and one for the median ratio of the first to the second, turn by turn.

    Args:
      found: speeds of every side, turn by turn.
      dtype: that they computed in.
      ratio: name of the last row.
      benchmark: what all names begin with.
      unit: of the speeds.
      digits: kept of them after the point.
    """
    rows: list[dict[str, Any]] = [
        {"name": f"{benchmark}.{name}.{dtype}", "unit": unit, "value": round(statistics.median(of), digits)}
        for name, of in found.items()
    ]
    first, second = found.values()
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    rows.append(
        {
            "name": f"{benchmark}.{ratio}.{dtype}",
            "unit": " / ".join(found),
            "value": round(statistics.median(ratios), 3),
            "ratio_of_each_turn": [round(value, 3) for value in ratios],
        }
    )
    return rows
