"""Processes that no supervisor watches, as on a pod, watch each other over jax's coordination service.

The first process, in which the service runs, reads the beats of all and writes down who can't go on. The others read
that, and the first one's beats: where it is silent itself, nothing comes from the service any more, and they find so
by themselves. So each process asks the service a few times a beat, however many there are.
"""

import contextlib
import dataclasses
import faulthandler
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

import jax

from jaxscale.errors import JaxscaleError
from jaxscale.observe.heartbeat import Beat, from_text, to_text
from jaxscale.observe.watchdog import Patience, Watchdog
from jaxscale.train.coordination import Coordination
from launch.restarts import LOST_PEER

_BEATS, _VERDICT, _READ_BY = "jaxscale/beats", "jaxscale/verdict", "jaxscale/verdict_read_by"
_FIRST = 0
# Of a log that has been closed, or whose reader has left.
_NOBODY_READS = (OSError, ValueError)
# Of a beat: between two exchanges with the service, and two looks at what they brought.
_EXCHANGE, _LOOK = 0.5, 0.25


class Peers:
    """Gives this process's beats to the others, and ends it with `LOST_PEER` when one of them can't go on.

    Use it as a context manager around all that the processes do together. An exception that leaves it is held back for
    as long as a silent process takes to be named: what fails in a step has mostly lost a peer, and then this process
    ends like all others.

    Args:
      job: the store of the coordination service.
      rank: of this process.
      num_processes: of the job.
      heartbeat_s: between two beats of a process; three without one, and it is silent.
      stall_s: see `Patience`.
      log: where findings and stacks go; stderr when None.
      end: ends the process at once with a code.
    """

    def __init__(
        self,
        job: Coordination,
        *,
        rank: int,
        num_processes: int,
        heartbeat_s: float,
        stall_s: float,
        log: TextIO | None = None,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._job, self._rank, self._heartbeat_s, self._end_process = job, rank, heartbeat_s, end
        self._log = sys.stderr if log is None else log
        patience = Patience(silence_s=3 * heartbeat_s, stall_s=stall_s)
        if rank != _FIRST:
            # It sees one process only, and can't say whom that one waits for.
            num_processes, patience = 1, dataclasses.replace(patience, stall_s=float("inf"))
        self._patience = patience
        self._watchdog = Watchdog(num_processes, patience, time.monotonic())
        self._own: Beat | None = None
        self._beats: dict[int, Beat] = {}
        self._verdict: str | None = None
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for name, run in (("peers-exchange", self._exchange), ("peers-watch", self._watch))
        ]

    def send(self, beat: Beat) -> None:
        """Takes a beat of this process; it is given to the others with the next exchange."""
        self._own = beat

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, JaxscaleError):
            time.sleep(self._patience.silence_s + 2 * self._heartbeat_s)
        self._closed.set()
        for thread in self._threads:
            # The exchange hangs where the first process is stopped; the watch ends this process where it has a reason.
            thread.join(self._patience.silence_s)

    def _exchange(self) -> None:
        """Until closed, and once more, so that the last beat says that this process is done."""
        for number in itertools.count():
            is_last = self._closed.wait(_EXCHANGE * self._heartbeat_s)
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # the service is gone: the first one's beats stop
                if self._own is not None:
                    # An exchange is a sign of life itself: the delays of two threads would add up.
                    beat = dataclasses.replace(self._own, number=number)
                    self._job.put(f"{_BEATS}/{self._rank}", to_text(beat))
                self._read()
            if is_last:
                return

    def _read(self) -> None:
        if self._rank == _FIRST:
            told = self._job.below(_BEATS)
        else:
            first = self._job.get(f"{_BEATS}/{_FIRST}")
            told = {} if first is None else {str(_FIRST): first}
            self._verdict = self._job.get(_VERDICT)
        self._beats = {int(rank): from_text(text, f"the beat of process {rank}") for rank, text in told.items()}

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK * self._heartbeat_s):
            findings = self._watchdog.look(self._beats, time.monotonic())
            for finding in findings:
                if not finding.fatal:
                    self._say(f"{finding.kind}: {finding.text}")
            lost = [finding for finding in findings if finding.fatal]
            verdict = self._verdict or "\n".join(f"{finding.kind}: {finding.text}" for finding in lost)
            if verdict:
                return self._end(verdict, {finding.rank for finding in lost})

    def _end(self, verdict: str, lost: set[int]) -> None:
        """Says who can't go on, shows where this process stands, and ends it, the first one after all others."""
        try:
            if self._rank == _FIRST:
                self._job.put(_VERDICT, verdict)
            for line in verdict.splitlines():
                self._say(line)
            self._say(f"the stacks of process {self._rank}, which can't go on and ends with code {LOST_PEER}:")
            with contextlib.suppress(*_NOBODY_READS):
                faulthandler.dump_traceback(file=self._log, all_threads=True)
            if self._rank == _FIRST:
                self._wait_for_readers(lost)
            elif self._verdict:
                self._job.put(f"{_READ_BY}/{self._rank}", "")
        except jax.errors.JaxRuntimeError:
            pass  # the service is gone, and whom it would have told
        finally:
            self._end_process(LOST_PEER)

    def _wait_for_readers(self, lost: set[int]) -> None:
        """Until all others have read the verdict: jax aborts them without the service, which ends with this process."""
        others = self._beats.keys() - lost - {_FIRST}
        deadline = time.monotonic() + self._patience.silence_s
        while time.monotonic() < deadline and others - {int(rank) for rank in self._job.below(_READ_BY)}:
            time.sleep(_LOOK * self._heartbeat_s)

    def _say(self, text: str) -> None:
        with contextlib.suppress(*_NOBODY_READS):
            self._log.write(f"[watchdog] {text}\n")
            self._log.flush()
