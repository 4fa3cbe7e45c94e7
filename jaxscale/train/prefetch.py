"""Batches made ahead of the loop in one background thread; a loader that fails raises in the loop, never hangs it."""

import queue
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import jax

_POLL_S = 0.1


class Prefetcher:
    """Makes and places batches in the order of their numbers, `depth` of them ahead.

    Args:
      make: the batch of a number, on the mesh.
      numbers: of the batches, in the order in which they are asked for.
      depth: batches waiting at most.
    """

    def __init__(
        self,
        make: Callable[[int], dict[str, jax.Array]],
        *,
        numbers: Iterable[int],
        depth: int = 2,
    ) -> None:
        self._make = make
        self._numbers = numbers
        self._ready: queue.Queue[tuple[int, Any]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def get(self, number: int, give_up: Callable[[], bool]) -> dict[str, jax.Array] | None:
        """Batch `number`.

        Args:
          number: the next one of `numbers`.
          give_up: asked while waiting; the wait ends with None once it is true.

        Raises:
          BaseException: whatever making the batch raised.
        """
        while not give_up():
            try:
                made, batch = self._ready.get(timeout=_POLL_S)
            except queue.Empty:
                if self._thread.is_alive() or not self._ready.empty():
                    continue
                raise self._error or RuntimeError(f"the loader ended before batch {number}") from None
            if made != number:
                raise RuntimeError(f"the loader made batch {made} where {number} was asked for")
            return batch
        return None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        # A loader stuck in its own code is left behind: its thread does not keep the process alive.
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        try:
            for number in self._numbers:
                self._put((number, self._make(number)))
                if self._closed.is_set():
                    return
        except BaseException as error:
            self._error = error

    def _put(self, item: tuple[int, Any]) -> None:
        while not self._closed.is_set():
            try:
                return self._ready.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
