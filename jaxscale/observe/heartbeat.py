"""A process's sign of life, given every second and between steps for a watchdog to read: a small file, or a text."""

import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jaxscale import typed_json
from jaxscale.errors import DataError
from jaxscale.observe.phases import Phase, Phases

# The phase of a process that gives no beats any more because it ends by itself.
DONE = "done"

# Steps may be quicker than a file should be written.
_SHORTEST_S = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beat:
    """What a process says of itself.

    Attributes:
      rank: of the process.
      number: of the beat, from 0; it grows as long as the process lives.
      step: steps that it has dispatched.
      phase: what it does, or `DONE`.
      data_s: seconds that it has waited for its own batches so far.
      host: the name of its host; empty where all are on one.
    """

    rank: int
    number: int
    step: int
    phase: str
    data_s: float
    host: str = ""


class Heartbeat:
    """Gives the beats of this process from its construction to `close`.

    Args:
      send: gives one to whoever watches, as `write_beat` does.
      rank: of this process.
      interval_s: between two beats.
      host: see `Beat`.
    """

    def __init__(self, send: Callable[[Beat], None], rank: int, interval_s: float = 1.0, host: str = "") -> None:
        self._send, self._rank, self._interval_s, self._host = send, rank, interval_s, host
        self._number, self._step, self._data_s = 0, 0, 0.0
        self._phase: Phase = "init"
        self._phase_began = time.monotonic()
        self._last = float("-inf")
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def follow(self, phases: Phases) -> None:
        """Tells the phase of the run from here on."""
        phases.listen(self._enter)

    def at_step(self, step: int) -> None:
        """Tells the number of steps dispatched, at once."""
        self._step = step
        if time.monotonic() - self._last >= _SHORTEST_S:
            self._beat()

    def close(self) -> None:
        """Says that it is done, and no more."""
        self._closed.set()
        self._thread.join()
        self._beat(DONE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _enter(self, phase: Phase, at_s: float) -> None:
        if self._phase == "data":
            self._data_s += at_s - self._phase_began
        self._phase, self._phase_began = phase, at_s

    def _run(self) -> None:
        while not self._closed.wait(self._interval_s):
            self._beat()

    def _beat(self, phase: str | None = None) -> None:
        with self._lock:
            beat = Beat(
                rank=self._rank,
                number=self._number,
                step=self._step,
                phase=phase or self._phase,
                data_s=self._data_s,
                host=self._host,
            )
            self._number += 1
            self._send(beat)
            self._last = time.monotonic()


def to_text(beat: Beat) -> str:
    """One line of JSON."""
    return json.dumps(typed_json.encode(beat))


def from_text(text: str, where: str) -> Beat:
    """What `to_text` wrote.

    Raises:
      DataError: it did not.
    """
    try:
        values: Any = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is no heartbeat: {error}") from None
    return typed_json.decode(Beat, values, where)


def write_beat(folder: Path, beat: Beat) -> None:
    """Writes a beat in the place of the process's last one, as a whole."""
    path = folder / f"{beat.rank}.json"
    draft = path.with_suffix(".tmp")
    draft.write_text(to_text(beat))
    os.replace(draft, path)


def read_beats(folder: Path) -> dict[int, Beat]:
    """The last beat of every process that has given one, by rank."""
    beats = [from_text(path.read_text(), str(path)) for path in sorted(folder.glob("*.json"))]
    return {beat.rank: beat for beat in beats}
