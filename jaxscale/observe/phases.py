"""What the run is doing: the phase of the moment, told to whoever listens (the goodput ledger, the watchdog)."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Literal

Phase = Literal["init", "compile", "data", "step", "evaluate", "checkpoint", "restore", "idle"]
# Called with the phase that begins and the time, of the clock given to `Phases`, at which it does.
Listener = Callable[[Phase, float], None]


class Phases:
    """The phase a run is in; one at any time, so that their durations sum to the whole.

    Phases nest: inside `compile`, `checkpoint` interrupts it, and `compile` goes on afterwards. One thread enters them;
    any thread may read `current`.

    Args:
      first: the phase of all that is in no other.
      clock: seconds that never run backwards.

    >>> ticks = iter(range(9))
    >>> phases, heard = Phases(clock=lambda: float(next(ticks))), []
    >>> phases.listen(lambda phase, at_s: heard.append((phase, at_s)))
    >>> with phases.enter("step"):
    ...     pass
    >>> heard
    [('init', 0.0), ('step', 1.0), ('init', 2.0)]
    """

    def __init__(self, first: Phase = "init", clock: Callable[[], float] = time.monotonic) -> None:
        self._current: Phase = first
        self._clock = clock
        self._listeners: list[Listener] = []

    @property
    def current(self) -> Phase:
        """The phase of the moment."""
        return self._current

    def now(self) -> float:
        """The time, in seconds, of the clock that listeners are told."""
        return self._clock()

    def listen(self, listener: Listener) -> None:
        """Tells `listener` the phase of the moment, and every one from here on, in this thread.

        Args:
          listener: quick, and raises nothing: it runs between two steps.
        """
        self._listeners.append(listener)
        listener(self._current, self._clock())

    def become(self, phase: Phase) -> None:
        """Begins a phase that no other surrounds: what was `init` becomes `idle` once the loop runs."""
        self._current = phase
        at_s = self._clock()
        for listener in self._listeners:
            listener(phase, at_s)

    @contextlib.contextmanager
    def enter(self, phase: Phase) -> Iterator[None]:
        """Is in `phase` inside the `with`, and back in the one around it afterwards, whatever was raised."""
        outer = self._current
        self.become(phase)
        try:
            yield
        finally:
            self.become(outer)
