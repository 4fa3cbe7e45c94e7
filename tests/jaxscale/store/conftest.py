"""Prints the fault suite's counts at the end of the run, and gives every test unused failpoints."""

from collections import Counter

import pytest

from jaxscale.store import failpoints
from tests.jaxscale.store import faults


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
