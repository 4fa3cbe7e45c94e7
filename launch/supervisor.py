"""Starts the processes of one job, passes signals on to them, and starts all again when one is lost or stuck."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Protocol, TextIO

from jaxscale.observe.watchdog import Finding
from launch.processes import STACKS_SIGNAL
from launch.restarts import Decision, Ending, backoff_s, code_of_all, decide, shell_code

_POLL_S = 0.05
# Processes that end this soon after the first one ended for the same cause, before we asked them to.
_SETTLE_S = 1.0
_LONGEST_BACKOFF_S = 60.0
# Between two looks at the signs of life, and for processes to write their stacks.
_LOOK_S, _STACKS_S = 0.25, 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What one process runs: its words, and its whole environment."""

    words: tuple[str, ...]
    environment: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How patient a supervisor is.

    Attributes:
      max_restarts: how often all processes are started again.
      grace_s: from the signal that asks a process to end to the SIGKILL that makes it; a stopped one needs that.
      first_backoff_s: the wait before the first restart; each later one is twice as long, up to a minute.
    """

    max_restarts: int = 3
    grace_s: float = 30.0
    first_backoff_s: float = 1.0


class Start(Protocol):
    """One start of all processes: what they run, and how they do."""

    def commands(self) -> Sequence[Command]:
        """Of the processes, by rank."""
        ...

    def findings(self) -> list[Finding]:
        """What there is to say of them now; called several times a second."""
        ...

    def step_reached(self) -> int | None:
        """The last step that is known to have been done."""
        ...


class Supervisor:
    """Keeps the processes of a job running until they are done, or may not be started again.

    Args:
      new_start: makes a start; called anew for each, as each needs a free port.
      limits: how patient it is.
      log: where the lines of the processes go, each with its rank, and our own.
    """

    def __init__(self, new_start: Callable[[], Start], limits: Limits, log: TextIO | None = None) -> None:
        self._new_start, self._limits = new_start, limits
        self._log = sys.stderr if log is None else log
        self._lock = threading.Lock()
        self.findings: list[Finding] = []
        self._signal: int | None = None
        self._num_signals = 0

    def run(self) -> tuple[list[Ending], Decision]:
        """Runs to the end; returns how every start ended, and why there is no other one."""
        endings: list[Ending] = []
        with self._catching_signals():
            while True:
                start = self._new_start()
                code = self._run_once(start)
                endings.append(Ending(code=code, step=start.step_reached()))
                decision = self._decision(endings)
                if not decision.restart:
                    self._say(f"ended: {decision.reason}")
                    return endings, decision
                wait_s = backoff_s(len(endings), first_s=self._limits.first_backoff_s, longest_s=_LONGEST_BACKOFF_S)
                self._say(f"restart {len(endings)} of {self._limits.max_restarts} in {wait_s:g} s: {decision.reason}")
                self._sleep(wait_s)
                if self._signal is not None:
                    return endings, self._decision(endings)

    def _decision(self, endings: Sequence[Ending]) -> Decision:
        return decide(endings, max_restarts=self._limits.max_restarts, asked_to_stop=self._signal is not None)

    def _run_once(self, start: Start) -> int:
        """Starts all processes and returns the code that they ended with; none is left when it returns."""
        with contextlib.ExitStack() as stack:
            # Started before any can fail, ended whatever happens here.
            processes: list[subprocess.Popen[bytes]] = []
            stack.callback(self._end, processes)
            for rank, command in enumerate(start.commands()):
                processes.append(self._start(rank, command, stack))
            started = ", ".join(f"{rank} (pid {process.pid})" for rank, process in enumerate(processes))
            self._say(f"started processes {started}")
            if self._wait_for_an_ending(processes, start):
                return shell_code(-signal.SIGKILL)
            self._wait(processes, _SETTLE_S if self._signal is None else self._limits.grace_s)
            # Those still here did not end by themselves: what we do to them says nothing of the cause.
            codes = [shell_code(code) for process in processes if (code := process.poll()) is not None]
            for rank, process in enumerate(processes):
                if process.returncode:
                    self._say(f"process {rank} ended with code {shell_code(process.returncode)}")
            # None ended after a signal: they were too slow, and are killed.
            return code_of_all(codes) if codes else shell_code(-signal.SIGKILL)

    def _start(self, rank: int, command: Command, stack: contextlib.ExitStack) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            list(command.words),
            env=dict(command.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A terminal's Ctrl-C would reach it besides the one that we pass on, and a second one ends it unsaved.
            start_new_session=True,
        )
        assert process.stdout is not None
        reader = threading.Thread(target=self._copy_lines, args=(rank, process.stdout), daemon=True)
        reader.start()
        stack.callback(reader.join, 5.0)
        return process

    def _copy_lines(self, rank: int, lines: IO[bytes]) -> None:
        with lines:
            for line in lines:
                self._write(f"[{rank}] {line.decode(errors='replace').rstrip()}")

    def _wait_for_an_ending(self, processes: Sequence[subprocess.Popen[bytes]], start: Start) -> bool:
        """Until all are done, or one failed, or a signal that we passed on has had its grace, or one is stuck.

        Returns:
          Whether one is stuck; it is named then, and the stacks of all that can show them are in the log.
        """
        passed_on, deadline, next_look = 0, float("inf"), 0.0
        while time.monotonic() < deadline:
            codes = [process.poll() for process in processes]
            if all(code is not None for code in codes) or (self._signal is None and any(codes)):
                return False
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + _LOOK_S
                if self._tell(start.findings(), processes):
                    return True
            if self._num_signals > passed_on and self._signal is not None:
                passed_on = self._num_signals
                self._say(f"passing {signal.Signals(self._signal).name} on to {len(processes)} processes")
                _send(processes, self._signal)
                deadline = min(deadline, time.monotonic() + self._limits.grace_s)
            time.sleep(_POLL_S)
        return False

    def _tell(self, findings: Sequence[Finding], processes: Sequence[subprocess.Popen[bytes]]) -> bool:
        """Writes down what was found; where one can't go on, the stacks of all too. Returns whether one can't."""
        self.findings += findings
        for finding in findings:
            self._say(f"{finding.kind}: {finding.text}")
        if not any(finding.fatal for finding in findings):
            return False
        self._say("the stacks of all processes that answer:")
        _send(processes, STACKS_SIGNAL)
        time.sleep(_STACKS_S)
        return True

    def _wait(self, processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(process.poll() is None for process in processes):
            time.sleep(_POLL_S)

    def _end(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        """Ends those that are left. What they could not commit together is not committed: they have lost a peer."""
        left = [rank for rank, process in enumerate(processes) if process.poll() is None]
        if left:
            self._say(f"killing {', '.join(map(str, left))}: they can't go on without the others")
            _send(processes, signal.SIGKILL)
        for process in processes:
            process.wait()

    @contextlib.contextmanager
    def _catching_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._take) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, frame: object) -> None:
        self._signal = number
        self._num_signals += 1

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._signal is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _say(self, text: str) -> None:
        self._write(f"[launch] {text}")

    def _write(self, line: str) -> None:
        with self._lock:
            self._log.write(f"{line}\n")
            self._log.flush()


def _send(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    """Sends a signal to those that still run, and SIGKILL to all that they started too."""
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(process.pid, number)  # a session of its own, see `_start`
                else:
                    process.send_signal(number)
