"""A run's events: what happened to it, one durable line of JSON each, appended for ever."""

import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

from jaxscale import typed_json

EVENTS_FILE = "events.jsonl"


class EventLog:
    """Appends to `folder/events.jsonl`; each line is on disk before `write` returns. Any thread may write.

    Args:
      folder: the run folder; None for a log that writes and shows nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / EVENTS_FILE

    def write(self, event: str, **values: Any) -> None:
        """Appends one event, with the time, and shows it on stderr.

        Args:
          event: its name, as `saved`.
          values: what belongs to it, as JSON values or dataclasses of them.
        """
        if self._path is None:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        row = {"time": now, "event": event, **{name: typed_json.encode(value) for name, value in values.items()}}
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # a kill cut the last line short; it stays, and readers leave it out
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        shown = " ".join(f"{name}={_short(value)}" for name, value in row.items() if name not in ("time", "event"))
        print(f"{event} {shown}".rstrip(), file=sys.stderr, flush=True)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events of a run, oldest first; a line that a kill cut short is left out."""
    path = folder / EVENTS_FILE
    events = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "event" in row:
            events.append(row)
    return events


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
