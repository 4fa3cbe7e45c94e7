"""A run's metrics: rows appended to metrics.jsonl, and a progress bar on a terminal or one greppable line a row.

A row is one JSON object on one line, `{"step": 120, "loss": 2.34, ...}`. A float32 is written as the float64 that
equals it. JSON has no NaN: non-finite values are the strings "NaN", "Infinity" and "-Infinity", which `read_metrics`
turns back into floats. A last line without its newline is a write that a kill cut short; it is left out.
"""

import importlib
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from jaxscale.errors import DataError, MachineError

METRICS_FILE = "metrics.jsonl"
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsWriter:
    """Appends rows to `folder/metrics.jsonl` and shows them; one writer a folder, one process of many.

    Use it as a context manager, so that the progress bar gives the terminal back whatever happens.
    """

    def __init__(
        self, folder: Path, *, num_steps: int, tensorboard: bool = False, stream: TextIO | None = None
    ) -> None:
        """Opens the file for appending, dropping a line that a kill cut short.

        Args:
          folder: the run folder; it exists.
          num_steps: the step at which the run ends, for the progress bar.
          tensorboard: also writes TensorBoard events under `folder/tensorboard`.
          stream: where rows are shown; stderr when None.

        Raises:
          MachineError: TensorBoard is asked for and tensorboardX is not installed.
        """
        self._folder = folder
        self._path = folder / METRICS_FILE
        self._stream = sys.stderr if stream is None else stream
        self._new_events = _load_tensorboard().SummaryWriter if tensorboard else None
        self._events: Any = None
        _drop_torn_line(self._path)
        self._file = self._path.open("ab")
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if self._stream.isatty():
            self._bar = _progress_bar(self._stream)
            self._task = self._bar.add_task("", total=num_steps, shown="")

    def write(self, step: int, values: Mapping[str, Any], *, show: bool = True) -> None:
        """Appends one row, hands it to the operating system, and shows it.

        Args:
          step: the number of steps done.
          values: numbers by name: Python's, numpy's or scalar arrays. Names have no spaces.
          show: False to keep the row out of the log; the file has it all the same.
        """
        row = {"step": int(step), **{name: _number(name, value) for name, value in values.items()}}
        line = json.dumps({name: _to_json(value) for name, value in row.items()}, allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self._write_events(row)
        if show:
            self._show(row)

    def advance(self, step: int) -> None:
        """Moves the progress bar, where there is one, between two rows."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def truncate_after(self, step: int) -> int:
        """Drops the rows of later steps, so that a run resumed at `step` writes none twice.

        The file is replaced as a whole, so that a kill leaves either the old or the new one.

        Returns:
          The number of rows dropped.
        """
        self._file.close()
        rows = _rows(self._path)
        kept = [line for number, line in enumerate(rows, 1) if _parse(self._path, number, line)["step"] <= step]
        _replace(self._path, b"".join(kept))
        self._file = self._path.open("ab")
        self.advance(step)
        return len(rows) - len(kept)

    def close(self) -> None:
        """Puts the file on disk and gives the terminal back. A second call does nothing."""
        if self._bar is not None:
            self._bar.stop()
        if self._events is not None:
            self._events.close()
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _show(self, row: Mapping[str, int | float]) -> None:
        if self._bar is None:
            print(format_row(row), file=self._stream, flush=True)
        else:
            shown = format_row({name: value for name, value in row.items() if name != "step"})
            self._bar.update(self._task, completed=row["step"], shown=shown)

    def _write_events(self, row: Mapping[str, int | float]) -> None:
        if self._new_events is None:
            return
        step = row["step"]
        if self._events is None:
            # TensorBoard forgets what a killed run wrote at this step and later.
            self._events = self._new_events(str(self._folder / "tensorboard"), purge_step=step)
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(name, value, step)


class NoMetrics:
    """Takes what a `MetricsWriter` does and writes nothing: in all processes of a job but the one that writes."""

    def write(self, step: int, values: Mapping[str, Any], *, show: bool = True) -> None:
        """Nothing."""

    def advance(self, step: int) -> None:
        """Nothing."""

    def truncate_after(self, step: int) -> int:
        """Drops nothing."""
        return 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def read_metrics(folder: Path) -> list[dict[str, int | float]]:
    """The rows of `folder/metrics.jsonl`, oldest first.

    Raises:
      DataError: the file is missing, or a line is not a row; the line is named.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; a run folder has one once its training has begun")
    return [_parse(path, number, line) for number, line in enumerate(_rows(path), 1)]


def format_row(row: Mapping[str, int | float]) -> str:
    """One row as `name=value` words, floats with five significant digits.

    >>> format_row({"step": 120, "loss": 2.345678, "lr": 1e-05})
    'step=120 loss=2.3457 lr=1e-05'
    """
    return " ".join(f"{name}={value:.5g}" if type(value) is float else f"{name}={value}" for name, value in row.items())


def _number(name: str, value: Any) -> int | float:
    if " " in name or name == "step":
        raise ValueError(f"a metric cannot be called {name!r}")
    array = np.asarray(value)
    # "V" is the kind of bfloat16 and its like; "b", "U" and "O" are no numbers.
    if array.ndim != 0 or array.dtype.kind not in "iufV":
        raise TypeError(f"metric {name!r} must be one number, got {value!r}")
    return int(array) if array.dtype.kind in "iu" else float(array)


def _to_json(value: int | float) -> int | float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _parse(path: Path, number: int, line: bytes) -> dict[str, int | float]:
    try:
        row = json.loads(line)
        values = {name: _NON_FINITE[value] if isinstance(value, str) else value for name, value in row.items()}
        if type(values["step"]) is int and all(type(value) in (int, float) for value in values.values()):
            return values
    except (ValueError, KeyError, AttributeError):
        pass
    raise DataError(f'{path}:{number}: got {line[:80]!r}, expected a row such as {{"step": 120, "loss": 2.5}}')


def _rows(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True)
    return [line for line in lines if line.endswith(b"\n")]


def _drop_torn_line(path: Path) -> None:
    if path.is_file() and not path.read_bytes().endswith(b"\n"):
        _replace(path, b"".join(_rows(path)))


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(path.name + ".tmp")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _progress_bar(stream: TextIO) -> Progress:
    return Progress(
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
        console=Console(file=stream),
    )


def _load_tensorboard() -> Any:
    try:
        return importlib.import_module("tensorboardX")
    except ImportError:
        raise MachineError(
            "tensorboard=True needs the package tensorboardX, which is not installed; "
            "`pip install jaxscale[tensorboard]` brings it"
        ) from None
