"""`jaxscale verify`: checks any committed directory, bit by bit."""

import dataclasses
from pathlib import Path
from typing import Any

import tyro

from jaxscale.errors import VerificationError
from jaxscale.store.checksums import Check
from jaxscale.store.verify import DirectoryReport, verify


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Checks a committed directory (a model, checkpoint, vectors, index), or every one inside a folder, e.g. a run's.

    Exits 0 if all is as it was written, 5 naming each damaged file, 3 if nothing there was committed.

    Example: jaxscale verify runs/small
    """

    directory: tyro.conf.Positional[Path]
    """A committed directory, or a folder that contains some."""

    check: Check = "full"
    """`full` checks every byte; `sizes` only names and sizes, and says so."""

    def run(self) -> dict[str, Any]:
        """Prints one line for each committed directory and returns the report."""
        found = verify(self.directory, self.check)
        for report in found.directories:
            print(_line(report, self.check))
        num_files = sum(report.num_files for report in found.directories)
        num_bytes = sum(report.num_bytes for report in found.directories)
        word = "every byte checked" if self.check == "full" else "unverified: only names and sizes were checked"
        print(f"{len(found.directories)} committed, {num_files} files, {num_bytes:,} bytes: {word}")
        if found.num_uncovered_files:
            print(f"{found.num_uncovered_files} files beside them are covered by no manifest and were not checked")
        for leftover in found.leftovers:
            print(f"{leftover}: a draft, of a writer at work or dead; nobody reads it")
        result = {
            "check": self.check,
            "verified": self.check == "full",
            "num_directories": len(found.directories),
            "num_files": num_files,
            "num_bytes": num_bytes,
            "num_uncovered_files": found.num_uncovered_files,
            "leftovers": [str(path) for path in found.leftovers],
            "damages": [{"file": str(damage.file), "what": damage.what} for damage in found.damages],
        }
        if found.damages:
            named = "".join(f"\n  {damage}" for damage in found.damages)
            raise VerificationError(
                f"{len(found.damages)} damaged; restore from a copy, or make again:{named}", report=result
            )
        return result


def _line(report: DirectoryReport, check: Check) -> str:
    verdict = f"{len(report.damages)} DAMAGED" if report.damages else ("ok" if check == "full" else "unverified")
    return f"{verdict:>10}  {report.path}  {report.format}  {report.num_files} files  {report.num_bytes:,} bytes"
