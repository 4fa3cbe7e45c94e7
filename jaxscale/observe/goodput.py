"""The goodput ledger: where the wall time of a run went, phase by phase; the parts sum to the whole."""

import dataclasses
import typing

from jaxscale.observe.phases import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goodput:
    """Seconds of one process's wall time, each counted once.

    Attributes:
      phases_s: by phase; `step` without what is wasted.
      wasted_s: of steps whose result was thrown away by a rollback.
    """

    phases_s: dict[Phase, float]
    wasted_s: float

    @property
    def total_s(self) -> float:
        """The wall time: all parts together."""
        return sum(self.phases_s.values()) + self.wasted_s

    @property
    def share(self) -> float:
        """The part of the wall time spent on steps that were kept; 0 before any time has passed."""
        return self.phases_s["step"] / self.total_s if self.total_s else 0.0


class Ledger:
    """Adds up the time of each phase; `listen` of a `Phases` feeds it.

    A moment belongs to the phase that was entered last, so that the parts sum to the wall time since the first phase.
    """

    def __init__(self) -> None:
        self._phases_s: dict[Phase, float] = dict.fromkeys(typing.get_args(Phase), 0.0)
        self._wasted_s = 0.0
        self._current: tuple[Phase, float] | None = None

    def __call__(self, phase: Phase, at_s: float) -> None:
        """Begins a phase.

        Args:
          phase: that begins.
          at_s: when, never before the last one.
        """
        if self._current is not None:
            last, since_s = self._current
            self._phases_s[last] += at_s - since_s
        self._current = (phase, at_s)

    @property
    def step_s(self) -> float:
        """Seconds in steps up to the last change of phase, those that were wasted left out."""
        return self._phases_s["step"]

    def waste(self, step_s: float) -> None:
        """Moves time from `step` to wasted: its steps were thrown away.

        Args:
          step_s: seconds, no more than `step` has.
        """
        if not 0 <= step_s <= self._phases_s["step"]:
            raise ValueError(f"wasted {step_s} s of {self._phases_s['step']} s in steps")
        self._phases_s["step"] -= step_s
        self._wasted_s += step_s

    def read(self, now_s: float) -> Goodput:
        """The ledger at a moment, the phase that goes on counted up to it.

        Args:
          now_s: by the clock of the phases.
        """
        phases_s = dict(self._phases_s)
        if self._current is not None:
            phase, since_s = self._current
            phases_s[phase] += now_s - since_s
        return Goodput(phases_s=phases_s, wasted_s=self._wasted_s)
