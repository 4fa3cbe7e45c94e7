"""How a process learns that it is one of several: variables of its environment, and what follows from them.

`jaxscale launch local` sets them. On a pod, whatever starts the processes sets JAXSCALE_COORDINATOR (`host:port` of the
first), JAXSCALE_NUM_PROCESSES and JAXSCALE_PROCESS_ID; the heartbeats are for a watchdog and may be left out.
"""

import contextlib
import dataclasses
import faulthandler
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from jaxscale.errors import UsageError
from jaxscale.observe.heartbeat import Heartbeat

_COORDINATOR, _NUM, _ID = "JAXSCALE_COORDINATOR", "JAXSCALE_NUM_PROCESSES", "JAXSCALE_PROCESS_ID"
_HEARTBEATS, _INTERVAL = "JAXSCALE_HEARTBEATS", "JAXSCALE_HEARTBEAT_S"
# What makes a process write the stacks of all its threads to its standard error.
STACKS_SIGNAL = signal.SIGUSR2
# jax ends all processes when one has been silent so long. The watchdog names it long before.
_HEARTBEAT_TIMEOUT_S = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a process stands among those of its job.

    Attributes:
      coordinator: `host:port` of process 0.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      heartbeats: the folder for their signs of life; None where nothing watches them.
      heartbeat_s: between two of them.
    """

    coordinator: str
    num_processes: int
    process_id: int
    heartbeats: Path | None = None
    heartbeat_s: float = 1.0

    def environment(self) -> dict[str, str]:
        """The variables that tell a process so."""
        place = {_COORDINATOR: self.coordinator, _NUM: str(self.num_processes), _ID: str(self.process_id)}
        if self.heartbeats is None:
            return place
        return {**place, _HEARTBEATS: str(self.heartbeats), _INTERVAL: str(self.heartbeat_s)}


def place_of_this_process() -> Place | None:
    """What this process was told; None where it was started by itself.

    Raises:
      UsageError: a variable is missing or no number.
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
    return Place(
        coordinator=os.environ[_COORDINATOR],
        num_processes=int(numbers[_NUM]),
        process_id=int(numbers[_ID]),
        heartbeats=Path(heartbeats) if heartbeats else None,
        heartbeat_s=float(os.environ.get(_INTERVAL, "1")),
    )


def is_first_process() -> bool:
    """Whether this process speaks for all: it is the first of several, or the only one."""
    return os.environ.get(_ID, "0") == "0"


@contextlib.contextmanager
def joined() -> Iterator[Heartbeat | None]:
    """Inside the `with`, this process is one of its job's, gives signs of life, and shows its stacks when asked.

    Yields:
      What says so; None where the process was started by itself.
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
            heartbeat = stack.enter_context(Heartbeat(place.heartbeats, place.process_id, place.heartbeat_s))
        initialize_processes(
            coordinator=place.coordinator,
            num_processes=place.num_processes,
            process_id=place.process_id,
            heartbeat_timeout_s=_HEARTBEAT_TIMEOUT_S,
        )
        yield heartbeat
