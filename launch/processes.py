"""How a process learns that it is one of several: variables of its environment, and what follows from them.

`jaxscale launch local` sets them. On a pod, whatever starts the processes sets JAXSCALE_COORDINATOR (`host:port` of the
first), JAXSCALE_NUM_PROCESSES and JAXSCALE_PROCESS_ID. JAXSCALE_HEARTBEATS, a folder, is for a supervisor that watches
the processes from outside; without it they watch each other, see `launch.peers`, with a beat every JAXSCALE_HEARTBEAT_S
seconds (0: they do not) and the patience of JAXSCALE_STALL_S (0: for ever).
"""

import contextlib
import dataclasses
import faulthandler
import functools
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from jaxscale.errors import UsageError
from jaxscale.observe.heartbeat import Heartbeat, write_beat

_COORDINATOR, _NUM, _ID = "JAXSCALE_COORDINATOR", "JAXSCALE_NUM_PROCESSES", "JAXSCALE_PROCESS_ID"
_HEARTBEATS, _INTERVAL, _STALL = "JAXSCALE_HEARTBEATS", "JAXSCALE_HEARTBEAT_S", "JAXSCALE_STALL_S"
# What makes a process write the stacks of all its threads to its standard error.
STACKS_SIGNAL = signal.SIGUSR2
# jax ends all processes when one has been silent so long. The watchdog names it long before.
_HEARTBEAT_TIMEOUT_S = 100
# Between the first process's failure and its end.
_OTHERS_END_S = 2.0
# More patient than on one machine: a restart of a pod is dear, and what compiles there is large.
_POD_HEARTBEAT_S, _POD_STALL_S = 5.0, 1800.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a process stands among those of its job.

    Attributes:
      coordinator: `host:port` of process 0.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      heartbeats: the folder for their signs of life, which a supervisor reads; None where they watch each other.
      heartbeat_s: between two of them; 0 where nobody watches.
      stall_s: without a step of any process, after which those that watch each other count one as stuck; 0: never.
    """

    coordinator: str
    num_processes: int
    process_id: int
    heartbeats: Path | None = None
    heartbeat_s: float = _POD_HEARTBEAT_S
    stall_s: float = _POD_STALL_S

    def environment(self) -> dict[str, str]:
        """The variables that tell a process so."""
        return {
            _COORDINATOR: self.coordinator,
            _NUM: str(self.num_processes),
            _ID: str(self.process_id),
            **({} if self.heartbeats is None else {_HEARTBEATS: str(self.heartbeats)}),
            _INTERVAL: str(self.heartbeat_s),
            _STALL: str(self.stall_s),
        }


def place_of_this_process() -> Place | None:
    """What this process was told; None where it was started by itself.

    Raises:
      UsageError: a variable is missing or not the number it must be.
    """
    if _ID not in os.environ:
        return None
    missing = [name for name in (_COORDINATOR, _NUM) if name not in os.environ]
    if missing:
        raise UsageError(f"{_ID} is set and {', '.join(missing)} is not; set all three, or none")
    numbers = {name: os.environ[name] for name in (_NUM, _ID)}
    for name, text in numbers.items():
        if not text.isdecimal():
            raise UsageError(f"{name}={text!r} must be a whole number")
    heartbeats = os.environ.get(_HEARTBEATS)
    if heartbeats and not _seconds(_INTERVAL, _POD_HEARTBEAT_S):
        raise UsageError(f"{_HEARTBEATS}={heartbeats} needs beats, but {_INTERVAL}=0 says none; use 1, or neither")
    return Place(
        coordinator=os.environ[_COORDINATOR],
        num_processes=int(numbers[_NUM]),
        process_id=int(numbers[_ID]),
        heartbeats=Path(heartbeats) if heartbeats else None,
        heartbeat_s=_seconds(_INTERVAL, _POD_HEARTBEAT_S),
        stall_s=_seconds(_STALL, _POD_STALL_S),
    )


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, str(default))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise UsageError(f"{name}={text!r} must be a number of seconds, at least 0")
    return seconds


def is_first_process() -> bool:
    """Whether this process speaks for all: it is the first of several, or the only one."""
    return os.environ.get(_ID, "0") == "0"


def is_one_of_several() -> bool:
    """Whether this process was told that it is one of a job's."""
    return _ID in os.environ


def end_alone(code: int) -> None:
    """Ends this process at once, without what Python and jax do at an end.

    One that has failed by itself must not wait for the others, as jax does at exit: they may wait for it, in the midst
    of a save. The first process gives those that fail too the time to say so, since jax ends them when it is gone.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first_process():
        time.sleep(_OTHERS_END_S)
    os._exit(code)


@contextlib.contextmanager
def joined() -> Iterator[Heartbeat | None]:
    """Inside the `with`, this process is one of its job's, gives signs of life, and shows its stacks when asked.

    Where no supervisor reads them, the processes of the job read each other's.

    Yields:
      What says so; None where the process was started by itself, or nobody watches.
    """
    place = place_of_this_process()
    if place is None:
        yield None
        return
    from jaxscale.mesh import initialize_processes

    faulthandler.register(STACKS_SIGNAL, file=sys.stderr, all_threads=True)
    with contextlib.ExitStack() as stack:
        heartbeat = None
        if place.heartbeats is not None:
            send = functools.partial(write_beat, place.heartbeats)
            heartbeat = stack.enter_context(Heartbeat(send, place.process_id, place.heartbeat_s))
        initialize_processes(
            coordinator=place.coordinator,
            num_processes=place.num_processes,
            process_id=place.process_id,
            heartbeat_timeout_s=_HEARTBEAT_TIMEOUT_S,
        )
        if place.heartbeats is None and place.heartbeat_s:
            heartbeat = _watched_by_peers(place, stack)
        yield heartbeat


def _watched_by_peers(place: Place, stack: contextlib.ExitStack) -> Heartbeat | None:
    """Starts the watch until the stack is left; there is none for a process that has no others."""
    from jaxscale.train.coordination import Coordination
    from launch.peers import Peers

    job = Coordination.of_this_job()
    if job is None:
        return None
    peers = stack.enter_context(
        Peers(
            job,
            rank=place.process_id,
            num_processes=place.num_processes,
            heartbeat_s=place.heartbeat_s,
            stall_s=place.stall_s or math.inf,
        )
    )
    return stack.enter_context(
        Heartbeat(peers.send, place.process_id, place.heartbeat_s, host=socket.gethostname().partition(".")[0])
    )
