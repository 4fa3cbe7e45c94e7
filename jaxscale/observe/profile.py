"""A window of steps that jax's profiler records."""

import dataclasses
from pathlib import Path

import jax

from jaxscale.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileWindow:
    """Steps `start` to `stop`, the last not among them, by the number of steps done before."""

    start: int
    stop: int

    @classmethod
    def parse(cls, text: str) -> "ProfileWindow":
        """`START:STOP`.

        Raises:
          UsageError: it is no such pair, or empty.

        >>> ProfileWindow.parse("10:12")
        ProfileWindow(start=10, stop=12)
        """
        start, colon, stop = text.partition(":")
        if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
            raise UsageError(f"profile={text!r}: expected START:STOP, two numbers of steps such as 10:12")
        return cls(start=int(start), stop=int(stop))


class Profiler:
    """Records a window of steps into a folder that TensorBoard, XProf and Perfetto read.

    Args:
      window: the steps; None for none.
      folder: for the trace.
    """

    def __init__(self, window: ProfileWindow | None, folder: Path) -> None:
        self._window, self._folder = window, folder
        self._running = False

    def due(self, step: int) -> bool:
        """Whether `at` would start or stop the recording here, so that the devices should be idle."""
        return self._window is not None and self._running != (self._window.start <= step < self._window.stop)

    def at(self, step: int) -> None:
        """Starts or stops the recording where `step` is at one end of the window, or beyond it."""
        if not self.due(step):
            return
        if self._running:
            self.close()
        else:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def close(self) -> None:
        """Writes what was recorded; a second call does nothing."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
