"""Prints the fault suite's counts at the end of the run; gives every test unused failpoints and a folder in memory."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxscale.store import failpoints
from tests.jaxscale.store import faults

_MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory where there is such a file system: these tests fsync thousands of times, on a shared disk."""
    folder = Path(tempfile.mkdtemp(prefix="jaxscale-test-", dir=_MEMORY if _MEMORY.is_dir() else None)).resolve()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _fresh_failpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_passes", Counter())
    monkeypatch.delenv(failpoints.VARIABLE, raising=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = faults.COUNTS
    if counts:
        terminalreporter.write_line(
            f"fault suite: {counts['kills']} kills, {counts['flips']} flips, {counts['cuts']} cuts; "
            f"{counts['lost']} lost, {counts['silent']} silent"
        )
