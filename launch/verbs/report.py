"""`jaxscale report`: the page of a training run."""

import dataclasses
from pathlib import Path
from typing import Any

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Draws a training run on one HTML page: loss, throughput, where the time went, memory, and what happened to it.

    The run may be going on. The page needs no network.

    Example: jaxscale report runs/a
    """

    run_folder: tyro.conf.Positional[Path]
    """The run folder."""
    out: Path | None = None
    """The page; report.html in the run folder where none is named."""

    def run(self) -> dict[str, Any]:
        """Writes the page and says where."""
        from launch.run_page import write_run_page

        out = self.out or self.run_folder / "report.html"
        write_run_page(self.run_folder, out)
        print(f"report: {out}")
        return {"run": str(self.run_folder), "report": str(out)}
