"""SIGTERM and Ctrl-C: a request to save and stop, answered from every phase, a compilation included.

Python runs its signal handlers between byte codes of the main thread, so none runs while XLA compiles. The C part of
a handler does run, and writes the signal's number to a file descriptor (`signal.set_wakeup_fd`), which a thread reads.
The main thread sees the request at its next step boundary. Where it may not come there soon (it compiles or
evaluates), it says so with `hold`: the thread may then save the state on its behalf and end the process.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from jaxscale.errors import Interrupted, JaxscaleError, Preempted

_SHOW_CURSOR = "\x1b[?25h\n"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_STDERR = 2
_ERRORS: dict[int, type[JaxscaleError]] = {signal.SIGTERM: Preempted, signal.SIGINT: Interrupted}


class StopSignals:
    """Catches SIGTERM and SIGINT between `__enter__` and `__exit__`; does nothing outside the main thread.

    A second Ctrl-C ends the process at once. Everything on disk is committed by renaming, so that nothing is harmed.

    Args:
      patience_s: how long the main thread may take to leave a `hold` by itself.
    """

    def __init__(self, patience_s: float = 2.0) -> None:
        self._patience_s = patience_s
        self._signal: int | None = None
        self._asked_at = 0.0
        # Held by the main thread while it changes `_held`, and for good by the watcher once it acts.
        self._lock = threading.Lock()
        self._held: Callable[[], str] | None = None
        # Where the last words go; opened by `__enter__`.
        self._stderr = -1
        self._undo = contextlib.ExitStack()

    @property
    def requested(self) -> bool:
        """Whether the process was asked to stop."""
        return self._signal is not None

    @property
    def reason(self) -> str:
        """`preempted` or `interrupted`, by the first signal."""
        return "preempted" if self._signal == signal.SIGTERM else "interrupted"

    def error(self, message: str) -> JaxscaleError:
        """The exception that ends the process as the signal asks: exit code 42 or 130."""
        return _ERRORS[self._signal or signal.SIGINT](_message(self._signal or signal.SIGINT, message))

    @contextlib.contextmanager
    def hold(self, save: Callable[[], str]) -> Iterator[None]:
        """A phase in which the main thread can't look at `requested`.

        Args:
          save: makes sure that nothing is lost and says what was done. Called from another thread, at most once, and
            only in this phase; the process ends after it.
        """
        with self._lock:
            before, self._held = self._held, save
        try:
            yield
        finally:
            with self._lock:
                self._held = before

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        # Without a standard error the last words go nowhere.
        with contextlib.suppress(OSError):
            self._stderr = os.dup(_STDERR)
            self._undo.callback(os.close, self._stderr)
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        for end in (reader, writer):
            self._undo.callback(end.close)
        for number in _SIGNALS:
            self._undo.callback(signal.signal, number, signal.signal(number, _nothing))
        self._undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False))
        watcher = threading.Thread(target=self._watch, args=(reader,), name="stop-signals", daemon=True)
        watcher.start()
        self._undo.callback(watcher.join)
        # The byte 0 is no signal: it tells the watcher that it is done.
        self._undo.callback(writer.send, b"\0")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _watch(self, reader: socket.socket) -> None:
        while True:
            timeout = None if self._signal is None else self._patience_s
            readable = select.select([reader], [], [], timeout)[0]
            for number in reader.recv(64) if readable else b"":
                if number == 0:
                    return
                self._take(number)
            if self._signal is not None and time.monotonic() - self._asked_at >= self._patience_s:
                self._act()

    def _take(self, number: int) -> None:
        if self._signal is None:
            self._signal, self._asked_at = number, time.monotonic()
        elif number == signal.SIGINT:
            _end(signal.SIGINT, "stopped at once, without saving; the last checkpoint is as it was", self._stderr)

    def _act(self) -> None:
        """Saves for a main thread that is held up, and ends the process; does nothing where it is not held up."""
        with self._lock:
            if self._held is not None and self._signal is not None:
                try:
                    done = self._held()
                except BaseException as error:  # the process must end whatever happens here
                    done = f"saving failed ({type(error).__name__}: {error}); the last checkpoint is as it was"
                _end(self._signal, done, self._stderr)


def _nothing(number: int, frame: Any) -> None:
    """A handler in Python: without one the C part would not write to the wakeup descriptor."""


def _message(number: int, done: str) -> str:
    word = "preempted (SIGTERM)" if number == signal.SIGTERM else "interrupted"
    return f"{word}: {done}; the same command goes on from there"


def _end(number: int, done: str, stderr: int) -> None:
    """Ends the process from a thread: the interpreter can't be closed down while another one compiles.

    Args:
      number: of the signal.
      done: what was done for the run.
      stderr: a descriptor, not that of `sys.stderr`: while a program compiles that one may be listened to, and what is
        still on its way is lost.
    """
    sys.stdout.flush()
    show_cursor = _SHOW_CURSOR if stderr >= 0 and os.isatty(stderr) else ""  # a progress bar had hidden it
    with contextlib.suppress(OSError):
        os.write(stderr, f"{show_cursor}jaxscale: {_message(number, done)}\n".encode())
    os._exit(_ERRORS[number].exit_code)
