"""`jaxscale launch local`: several processes of one job on this machine, watched, and started again if one is lost."""

import dataclasses
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxscale import typed_json
from jaxscale.errors import JaxscaleError, UsageError
from jaxscale.observe.heartbeat import read_beats
from jaxscale.observe.watchdog import Finding, Patience, Watchdog
from launch.processes import Place
from launch.supervisor import Command as ProcessCommand
from launch.supervisor import Limits, Supervisor

# Verbs that several processes can do together.
_VERBS = ("train",)


class JobEndedError(JaxscaleError):
    """All processes have ended, and are not started again; the exit code is theirs."""

    def __init__(self, message: str, code: int, report: dict[str, Any]) -> None:
        super().__init__(message, report=report)
        self.exit_code = code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Runs a verb by several processes that share one mesh; what stands after `--` is the verb and its flags.

    A process that is lost, silent or stuck is named, and all are started again from the last checkpoint. One that
    refuses its input (codes 2 to 7) ends the job, and so does Ctrl-C; SIGTERM is passed on, saves, and ends with 42.

    Example: jaxscale launch local -n 4 -- train palm_tiny --out runs/palm --data.datasets tokens --mesh fsdp=4
    Example: jaxscale launch local -n 2 --max-restarts 10 -- train llama_10m --out runs/a --data.datasets t --devices 4
    """

    num_processes: Annotated[int, tyro.conf.arg(aliases=["-n"])]
    """How many. `--devices N` after the verb emulates N CPU devices in each of them."""
    max_restarts: int = 3
    """How often all are started again. Twice the same end at the same step ends the job before."""
    grace_s: float = 60.0
    """From a signal that is passed on to SIGKILL, in seconds: a step, and the save of its state."""
    backoff_s: float = 1.0
    """Before the first restart, in seconds; each later wait is twice as long, up to a minute."""
    heartbeat_s: float = 1.0
    """Between two signs of life of a process, in seconds; one that is silent three times as long counts as stopped."""
    stall_s: float = 600.0
    """Seconds without a step of any process, after which those that hold the others up count as stuck."""
    behind: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()

    def run(self) -> dict[str, Any]:
        """Runs the job to its end; its lines go to standard error, each with its process."""
        self._check()
        limits = Limits(max_restarts=self.max_restarts, grace_s=self.grace_s, first_backoff_s=self.backoff_s)
        patience = Patience(silence_s=3 * self.heartbeat_s, stall_s=self.stall_s)
        with tempfile.TemporaryDirectory(prefix="jaxscale-heartbeats-") as folder:

            def new_start() -> _Start:
                return _Start(self.behind, self.num_processes, Path(folder), self.heartbeat_s, patience)

            supervisor = Supervisor(new_start, limits)
            endings, decision = supervisor.run()
        report = {
            "endings": [typed_json.encode(ending) for ending in endings],
            "findings": [typed_json.encode(finding) for finding in supervisor.findings],
            "num_restarts": len(endings) - 1,
        }
        code = endings[-1].code
        if code:
            raise JobEndedError(f"the job ended: {decision.reason}", code, report)
        print(f"done after {len(endings) - 1} restarts")
        return report

    def _check(self) -> None:
        if self.num_processes < 1:
            raise UsageError(f"-n {self.num_processes}: there must be 1 process at least")
        if not self.behind or self.behind[0] not in _VERBS:
            got = f"got {self.behind[0]!r}" if self.behind else "there is none"
            raise UsageError(
                f"after -- must stand the verb that the processes do, one of {', '.join(_VERBS)}; {got}: "
                "jaxscale launch local -n 4 -- train RECIPE --out DIR"
            )
        for name in ("grace_s", "backoff_s", "heartbeat_s", "stall_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name}={getattr(self, name)} must be above 0")
        if self.max_restarts < 0:
            raise UsageError(f"max_restarts={self.max_restarts} must be at least 0")


class _Start:
    """One start of all processes, with their signs of life in an empty folder."""

    def __init__(
        self, words: Sequence[str], num_processes: int, heartbeats: Path, heartbeat_s: float, patience: Patience
    ) -> None:
        self._words, self._num_processes = tuple(words), num_processes
        self._heartbeats, self._heartbeat_s = heartbeats, heartbeat_s
        self._watchdog = Watchdog(num_processes, patience, time.monotonic())
        for path in heartbeats.iterdir():
            path.unlink()

    def commands(self) -> list[ProcessCommand]:
        """The processes, told where they stand; each is this very program."""
        coordinator = f"127.0.0.1:{_free_port()}"
        places = [
            Place(
                coordinator=coordinator,
                num_processes=self._num_processes,
                process_id=rank,
                heartbeats=self._heartbeats,
                heartbeat_s=self._heartbeat_s,
            )
            for rank in range(self._num_processes)
        ]
        words = (sys.executable, "-m", "launch.cli", *self._words)
        return [ProcessCommand(words=words, environment={**os.environ, **place.environment()}) for place in places]

    def findings(self) -> list[Finding]:
        """What the watchdog says."""
        return self._watchdog.look(read_beats(self._heartbeats), time.monotonic())

    def step_reached(self) -> int | None:
        """The most steps that any process has told of; None where none has told of one."""
        return max((beat.step for beat in read_beats(self._heartbeats).values()), default=0) or None


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
