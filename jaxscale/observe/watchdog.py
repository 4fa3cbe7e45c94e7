"""Which process of a job is silent, stuck or slow, from the beats of all of them; without any process or clock."""

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Literal

from jaxscale.observe.heartbeat import DONE, Beat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a watchdog waits.

    Attributes:
      silence_s: without a beat, for a process that has given one: three beats.
      start_s: without a first beat.
      stall_s: without a step of any process, for what takes no longer than that: compiling, evaluating, saving.
      slow_steps: steps over which the processes are compared.
      slow_share: of the time of a step that one waits for its own data beyond the others, from which it is slow.
    """

    silence_s: float = 3.0
    start_s: float = 120.0
    stall_s: float = 600.0
    slow_steps: int = 8
    slow_share: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One process, what is the matter with it, and in words."""

    kind: Literal["silent", "stuck", "slow"]
    rank: int
    step: int
    phase: str
    text: str

    @property
    def fatal(self) -> bool:
        """Whether the job can't go on with it."""
        return self.kind != "slow"


@dataclasses.dataclass
class _Seen:
    """The last beat of a process and when it came; and where it stood when the processes were last compared."""

    beat: Beat
    at_s: float
    compared: Beat
    compared_at_s: float


class Watchdog:
    """Looks at the beats of a start of all processes, again and again.

    Args:
      num_processes: of the job.
      patience: how long it waits.
      now_s: when the processes were started, by the clock that `look` is given.
    """

    def __init__(self, num_processes: int, patience: Patience, now_s: float) -> None:
        self._num_processes, self._patience = num_processes, patience
        self._started_s = self._looked_s = self._progressed_s = now_s
        self._seen: dict[int, _Seen] = {}
        self._slow: set[int] = set()

    def look(self, beats: Mapping[int, Beat], now_s: float) -> list[Finding]:
        """What there is to say now; a process that is slow is named once.

        Args:
          beats: the last of each process that has given one.
          now_s: the time.
        """
        self._forgive(now_s)
        for rank, beat in beats.items():
            seen = self._seen.get(rank)
            if seen is None:
                self._seen[rank] = _Seen(beat=beat, at_s=now_s, compared=beat, compared_at_s=now_s)
                self._progressed_s = now_s
            elif beat.number != seen.beat.number:
                if (beat.step, beat.phase) != (seen.beat.step, seen.beat.phase):
                    self._progressed_s = now_s
                seen.beat, seen.at_s = beat, now_s
        return self._silent(now_s) or self._stuck(now_s) or self._slower(now_s)

    def _forgive(self, now_s: float) -> None:
        """Time in which we did not look, because the whole machine stood still, is nobody's fault."""
        missed_s = now_s - self._looked_s
        self._looked_s = now_s
        if missed_s > self._patience.silence_s / 2:
            self._started_s += missed_s
            self._progressed_s += missed_s
            for seen in self._seen.values():
                seen.at_s += missed_s
                seen.compared_at_s += missed_s

    def _silent(self, now_s: float) -> list[Finding]:
        findings = []
        for rank, seen in sorted(self._seen.items()):
            silent_s = now_s - seen.at_s
            if silent_s > self._patience.silence_s and seen.beat.phase != DONE:
                what = f"process {rank} has given no sign of life for {silent_s:.1f} s"
                findings.append(_finding("silent", seen.beat, what))
        missing = sorted(set(range(self._num_processes)) - self._seen.keys())
        if missing and now_s - self._started_s > self._patience.start_s:
            for rank in missing:
                text = f"process {rank} has given no sign of life since its start, {now_s - self._started_s:.0f} s ago"
                findings.append(Finding(kind="silent", rank=rank, step=0, phase="init", text=text))
        return findings

    def _stuck(self, now_s: float) -> list[Finding]:
        """Those that the others wait for: fewest steps, and of these the ones that do not wait in a step themselves."""
        still_s = now_s - self._progressed_s
        if not self._seen or still_s <= self._patience.stall_s:
            return []
        last = min(seen.beat.step for seen in self._seen.values())
        behind = [seen.beat for _, seen in sorted(self._seen.items()) if seen.beat.step == last]
        culprits = [beat for beat in behind if beat.phase != "step"] or behind
        return [
            _finding("stuck", beat, f"process {beat.rank} is stuck: no process has come further for {still_s:.0f} s")
            for beat in culprits
        ]

    def _slower(self, now_s: float) -> list[Finding]:
        """Those that wait longer for their own data than the others, in which the others wait for them."""
        if len(self._seen) < 2 or len(self._seen) < self._num_processes:
            return []
        if min(seen.beat.step - seen.compared.step for seen in self._seen.values()) < self._patience.slow_steps:
            return []
        share = {
            rank: (seen.beat.data_s - seen.compared.data_s) / max(now_s - seen.compared_at_s, 1e-9)
            for rank, seen in self._seen.items()
        }
        for seen in self._seen.values():
            seen.compared, seen.compared_at_s = seen.beat, now_s
        findings = []
        for rank, own in sorted(share.items()):
            others = statistics.median(value for other, value in share.items() if other != rank)
            if own - others > self._patience.slow_share and rank not in self._slow:
                what = (
                    f"process {rank} is slow: {own:.0%} of the time it waits for its own data, the others {others:.0%}"
                )
                findings.append(_finding("slow", self._seen[rank].beat, what))
                self._slow.add(rank)
        return findings


def _finding(kind: Literal["silent", "stuck", "slow"], beat: Beat, what: str) -> Finding:
    host = f"host {beat.host}, " if beat.host else ""
    text = f"{what} ({host}step {beat.step}, phase {beat.phase})"
    return Finding(kind=kind, rank=beat.rank, step=beat.step, phase=beat.phase, text=text)
