"""A run folder: claimed for one job and one process. Its format is in docs/formats/run-folder.md."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jaxscale import typed_json
from jaxscale.errors import DataError, MachineError, UsageError
from jaxscale.store import disk
from jaxscale.store.checkpoints import Checkpoints
from jaxscale.store.lock import WriterLock
from jaxscale.train.events import EventLog, read_events
from jaxscale.train.resume import Change, Fork, changes, check_identity

JOB_FILE = "job.json"
CHECKPOINTS = "checkpoints"
_FORMAT, _VERSION = "jaxscale.run", 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """The checkpoint of another run that this one was forked from."""

    run: str
    step: int
    identity_sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobFile:
    """What job.json holds."""

    format: str
    version: int
    identity: dict[str, Any]
    identity_sha256: str
    operation: dict[str, Any]
    forked_from: Origin | None
    # The words after `jaxscale train` at the last start; none where it was started from Python.
    command: tuple[str, ...] = typed_json.added(())


class RunFolder:
    """The folder of one run, locked against every other process until it is closed.

    Args:
      path: the folder; made where there is none.
      writes: False in the processes of a job that only read there: they take no lock, and what they are told to write
        is not written.

    Raises:
      MachineError: a live process writes there, or the place can't be written.
      UsageError: something is there that is no run folder.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path.absolute()
        self._lock: WriterLock | None = None
        self._check_place()
        self.events = EventLog(self.path if writes else None)
        if writes:
            self._take_lock()

    def _take_lock(self) -> None:
        try:
            disk.make_directories(self.path.parent)
            lock = WriterLock(self.path)
        except OSError as error:
            raise MachineError(f"--out {self.path} can't be written: {error}; name another folder") from error
        with contextlib.ExitStack() as on_error:
            on_error.callback(lock.release)
            self._check_place()
            on_error.pop_all()
        self._lock = lock

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / CHECKPOINTS

    @property
    def model(self) -> Path:
        """Where the exported model is."""
        return self.path / "model"

    def claim(
        self, identity: dict[str, Any], operation: Any, fork: Fork | None, command: Sequence[str] = ()
    ) -> tuple[JobFile, list[Change]]:
        """The job as job.json is to say it, checked against the one that is there; nothing is written.

        Args:
          identity: what the run is.
          operation: how it is operated from now on.
          fork: the run whose state this one begins with.
          command: the words that started it, for `jaxscale replay`.

        Returns:
          The job, and what changed since the last start: a longer run, and fields of the operation.

        Raises:
          UsageError: the folder belongs to another job, or the run to fork from has no such checkpoint.
        """
        operation = typed_json.encode(operation)
        old, found = None, []
        if not (self.path / JOB_FILE).exists():
            forked_from = _origin(fork) if fork else None
        else:
            old = read_job(self.path)
            extended = check_identity(self.path, old.identity, identity)
            found = [extended] if extended else []
            found += [dataclasses.replace(c, field=f"operation.{c.field}") for c in changes(old.operation, operation)]
            _check_origin(self.path, old.forked_from, fork)
            forked_from = old.forked_from
        job = JobFile(
            format=_FORMAT,
            version=_VERSION,
            identity=identity,
            identity_sha256=typed_json.fingerprint(identity),
            operation=operation,
            forked_from=forked_from,
            command=tuple(command),
        )
        return job, found

    def write_job(self, job: JobFile) -> None:
        """Makes the folder a run folder of this job."""
        if self._lock is None:
            return
        disk.make_directories(self.path)
        self.write_json(JOB_FILE, job)

    def finished(self, num_steps: int) -> dict[str, Any] | None:
        """The event with which the run finished all of its steps and exported its model, or None."""
        done = [e for e in read_events(self.path) if e["event"] == "finished" and e["step"] == num_steps]
        return done[-1] if done and self.model.exists() else None

    def write_json(self, name: str, value: Any) -> None:
        """Writes a file of the folder as a whole: after a kill the old or the new one is there."""
        if self._lock is None:
            return
        draft = self.path / f".{name}.tmp"
        with draft.open("wb") as file:
            file.write(json.dumps(typed_json.encode(value), indent=2, sort_keys=True, ensure_ascii=False).encode())
            file.write(b"\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path / name)
        disk.fsync(self.path)

    def close(self) -> None:
        """Gives the folder to whoever comes next."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_place(self) -> None:
        disk.check_directory_above(self.path)
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--out {self.path} is a file; name a folder")
        if not self.path.is_dir() or (self.path / JOB_FILE).is_file():
            return
        others = sorted(p.name for p in self.path.iterdir() if p.name != f".{JOB_FILE}.tmp")
        if others:
            raise UsageError(
                f"--out {self.path} is not a run folder (it has no {JOB_FILE}) and is not empty "
                f"({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}); name a new folder"
            )


def read_job(run: Path) -> JobFile:
    """What the job.json of a run folder holds.

    Raises:
      DataError: it is missing, malformed, or not what its own hash says.
    """
    path = run / JOB_FILE
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}") from error
    job = typed_json.decode(JobFile, values, str(path))
    if (job.format, job.version) != (_FORMAT, _VERSION):
        raise DataError(f"{path}: got {job.format} version {job.version}, expected {_FORMAT} version {_VERSION}")
    if job.identity_sha256 != typed_json.fingerprint(job.identity):
        raise DataError(f"{path}: the identity was changed by hand: its hash is not {job.identity_sha256}")
    return job


def _origin(fork: Fork) -> Origin:
    steps = Checkpoints(fork.run / CHECKPOINTS).steps()
    step = fork.step if fork.step is not None else max(steps, default=None)
    if step is None or step not in steps:
        known = ", ".join(map(str, steps)) or "none"
        raise UsageError(f"--fork-from {fork.run}: there is no checkpoint of step {step}; there are: {known}")
    return Origin(run=str(fork.run.absolute()), step=step, identity_sha256=read_job(fork.run).identity_sha256)


def _check_origin(run: Path, old: Origin | None, fork: Fork | None) -> None:
    """The same command names the same fork again; naming another one is refused, naming none is not."""
    if fork is None:
        return
    given = read_job(fork.run).identity_sha256
    if old is None or old.identity_sha256 != given or fork.step not in (None, old.step):
        was = f"forked from {old.run}@{old.step}" if old else "begun without --fork-from"
        raise UsageError(f"{run} was {was}; use another --out, or leave --fork-from out to go on with it")
