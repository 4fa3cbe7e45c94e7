"""What the processes of one run decide alike, although only one of them was asked: to stop, to save by the clock."""

import jax

from jaxscale.train.coordination import Coordination


class Agreement:
    """Something proposed by any process is done by all of them at one boundary between steps.

    Processes count their boundaries alike, but are not at the same one at the same time: some are ahead of others by as
    many steps as are in flight. A proposal is therefore for a boundary that none can have come to before it knows.

    Args:
      max_ahead: the steps that a process dispatches before it waits for their results.
    """

    def __init__(self, max_ahead: int) -> None:
        self._job = Coordination.of_this_job()
        # At the boundary `max_ahead + 2` from here, the last step whose results were waited for is one that the
        # proposing process dispatched after it had proposed.
        self._delay = max_ahead + 2 if self._job is not None else 0
        self._boundary = 0
        # By what is proposed: how often it was done, and the boundary it is agreed for where that is known.
        self._rounds: dict[str, int] = {}
        self._agreed: dict[str, int] = {}
        self._proposed: set[tuple[str, int]] = set()

    def next_boundary(self) -> None:
        """Counts one boundary; every process calls it at every one."""
        self._boundary += 1

    def propose(self, what: str) -> None:
        """Asks all processes to do `what`; a second proposal before it is done changes nothing."""
        key = (what, self._rounds.get(what, 0))
        if key in self._proposed:
            return
        self._proposed.add(key)
        boundary = self._boundary + self._delay
        if self._job is None:
            self._agreed[what] = boundary
        else:
            self._job.put_first(self._key(what), str(boundary))

    def due(self, what: str) -> bool:
        """Whether all processes do `what` at this boundary; true once for each proposal.

        Where no process asked at the boundary that was agreed on, it is true at the first one at which they ask.
        """
        if what not in self._agreed and self._job is not None:
            found = self._job.get(self._key(what))
            if found is not None:
                self._agreed[what] = int(found)
        if what not in self._agreed or self._boundary < self._agreed[what]:
            return False
        del self._agreed[what]
        self._rounds[what] = self._rounds.get(what, 0) + 1
        return True

    def _key(self, what: str) -> str:
        return f"jaxscale/agreement/{what}/{self._rounds.get(what, 0)}"


def agreed_step(step: int | None) -> int | None:
    """The primary process's `step`, for all of them; what they read from a folder may differ while it writes there."""
    if jax.process_count() == 1:
        return step
    from jax.experimental import multihost_utils  # noqa: PLC0415 - starts the backend

    told = int(multihost_utils.broadcast_one_to_all(-1 if step is None else step))
    return None if told < 0 else told


def wait_for_all(what: str) -> None:
    """Waits until every process is here.

    Args:
      what: names the place, the same for all.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils  # noqa: PLC0415 - starts the backend

        multihost_utils.sync_global_devices(what)
