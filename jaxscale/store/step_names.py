"""The names in a checkpoints folder: a directory for each step, and empty files that mark steps."""

import re
from pathlib import Path
from typing import Literal

Mark = Literal["best", "protected"]

_STEP = re.compile(r"step_(\d{8,})")
_MARK = re.compile(r"step_(\d{8,})\.(best|protected)")


def step_name(step: int) -> str:
    """The directory of a step.

    >>> step_name(200)
    'step_00000200'
    """
    return f"step_{step:08d}"


def mark_name(step: int, mark: Mark) -> str:
    """The empty file that marks a step.

    >>> mark_name(200, "best")
    'step_00000200.best'
    """
    return f"{step_name(step)}.{mark}"


def step_of(name: str) -> int | None:
    """The step whose directory is called `name`; None where it is no step's.

    >>> step_of("step_00000200"), step_of("step_00000200.best")
    (200, None)
    """
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def steps_in(directory: Path) -> list[int]:
    """The steps that have a directory in `directory`, ascending."""
    if not directory.is_dir():
        return []
    return sorted(step for path in directory.iterdir() if (step := step_of(path.name)) is not None)


def marked_in(directory: Path, mark: Mark) -> set[int]:
    """The steps that are marked in `directory`."""
    if not directory.is_dir():
        return set()
    found = (_MARK.fullmatch(path.name) for path in directory.iterdir())
    return {int(match[1]) for match in found if match and match[2] == mark}
