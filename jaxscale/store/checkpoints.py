"""Checkpoints of a training state: committed directories, one for each step kept, saved while training goes on.

Orbax's v1 API does the asynchronous save, its barriers and the retention policies; the committed directory around it
makes a step durable, and the leaves go through our checksummed arrays. docs/formats/checkpoint.md has the format,
docs/decisions/checkpoints.md the reasons.
"""

import asyncio
import concurrent.futures
import dataclasses
import datetime
import math
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import orbax.checkpoint.experimental.v1 as ocp

from jaxscale.errors import DataError, UsageError, VerificationError
from jaxscale.store import arrays, commit, disk
from jaxscale.store.checksums import Check, compare
from jaxscale.store.chunks import Chunked, array_of_chunk
from jaxscale.store.failpoints import failpoint
from jaxscale.store.host_copy import HostCopier, without_copy
from jaxscale.store.lock import WriterLock
from jaxscale.store.manifest import read_manifest
from jaxscale.store.orbax_handler import METADATA, STATE, orbax_context
from jaxscale.store.processes import is_primary, meet
from jaxscale.store.step_names import Mark, mark_name, marked_in, step_name, steps_in

FORMAT, VERSION = "jaxscale.checkpoint", 1

_ORBAX = "orbax"
# Chunk checksums and edges, Orbax's JSON and the manifest: a share of the state, and something for each leaf.
_OVERHEAD_SHARE, _OVERHEAD_BYTES_PER_LEAF = 0.01, 16 << 10

policies = ocp.training.preservation_policies


@dataclasses.dataclass(frozen=True, kw_only=True)
class _StepInfo:
    """What Orbax's retention policies want to know of a step."""

    step: int
    time: datetime.datetime
    metrics: dict[str, Any] | None = None


class Checkpoints:
    """The checkpoints of one training run. Reading takes no lock; the first write takes the folder's.

    Args:
      directory: the folder; made by the first save.
      keep_last: how many of the newest steps are kept, at least 1.
      keep_every: steps that are a multiple of it are kept too; None for no such rule.

    Raises:
      UsageError: keep_last or keep_every is less than 1.
    """

    def __init__(self, directory: str | Path, *, keep_last: int = 2, keep_every: int | None = None) -> None:
        if keep_last < 1 or (keep_every is not None and keep_every < 1):
            raise UsageError(
                f"keep_last={keep_last} and keep_every={keep_every} must be at least 1; "
                "keep_every=None keeps no step for its number"
            )
        self.directory = Path(directory).absolute()
        self._keep_last, self._keep_every = keep_last, keep_every
        self._lock: WriterLock | None = None
        self._executor: concurrent.futures.ThreadPoolExecutor | None = None
        self._pending: concurrent.futures.Future[None] | None = None
        self._cancelled = threading.Event()
        self._copier = HostCopier()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps that were acknowledged and are kept, ascending; damaged ones too."""
        return steps_in(self.directory)

    def latest(self) -> int | None:
        """The newest step, or None; whether it is damaged, `restore` tells."""
        steps = self.steps()
        return steps[-1] if steps else None

    def path(self, step: int) -> Path:
        """The committed directory of a step."""
        return self.directory / step_name(step)

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Saves a step and returns when it is durable; see `save_async`. Makes no copy of the state."""
        self._start(step, state, metadata, copy=False)
        cancelled = self._cancelled
        try:
            self.wait()
        except BaseException:
            # Interrupted while it waited: the caller may overwrite the state now, so the step must not be committed.
            cancelled.set()
            raise

    def save_async(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Copies the state to the host and returns; the write goes on in a thread, one at a time.

        Every process of a run calls it, with the same step.

        Args:
          step: not saved yet, at least 0.
          state: any tree of arrays (sharded in any way) and numbers; it may be overwritten as soon as this returns.
          metadata: JSON values to keep beside it.

        Raises:
          MachineError: another process writes this folder, or the state does not fit on the disk.
          UsageError: the step is there already.
          Exception: what the previous save failed with; that step was then not saved.
        """
        self._start(step, state, metadata, copy=True)

    def _start(self, step: int, state: Any, metadata: dict[str, Any], *, copy: bool) -> None:
        self.wait()
        if step in self.steps():
            raise UsageError(f"step {step} is saved already in {self.directory}; restore it, or remove it first")
        parts = self._copier.copy(state) if copy else without_copy(state)
        draft = self._open_draft(step, parts)
        try:
            with orbax_context():
                response = ocp.save_checkpointables_async(
                    commit.draft_path(self.path(step), _draft_id(step)) / _ORBAX, {STATE: parts, METADATA: metadata}
                )
        except BaseException:
            if draft is not None:
                draft.abandon()
            raise
        if self._executor is None:
            self._executor = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._cancelled = threading.Event()
        self._pending = self._executor.submit(self._finish, step, draft, response, self._cancelled)

    def wait(self) -> None:
        """Returns when the save in progress, if any, is durable.

        Raises:
          Exception: what that save failed with; that step was then not saved, and the older ones are as they were.
        """
        pending = self._pending
        if pending is None:
            return
        try:
            pending.result()
        finally:
            if pending.done():  # interrupted while it waited: the save goes on, and the next call waits for it
                self._pending = None

    def restore(
        self, step: int, abstract_state: Any, shardings: Any = None, check: Check = "full"
    ) -> tuple[Any, dict[str, Any]]:
        """Reads a step onto a mesh, whatever mesh it was saved from.

        Args:
          step: one of `steps()`.
          abstract_state: a tree whose leaves have `shape` and `dtype`; the state's, or a part of it by the same paths.
            None reads every leaf, into nested dicts.
          shardings: a tree of shardings like `abstract_state`, or one for all; None gives numpy arrays.
          check: `full` checks every byte of the checkpoint, `sizes` names and sizes and the values that are read.

        Returns:
          The state, and the metadata it was saved with.

        Raises:
          DataError: there is no such step, or a leaf is missing or has another shape or dtype.
          VerificationError: the step is damaged; no older one is taken instead.
        """
        path = self.path(step)
        if step not in self.steps():
            raise DataError(f"there is no step {step} in {self.directory}; there are {_list(self.steps())}")
        try:
            self._check(path, abstract_state, check)
            state = arrays.read_tree(path / _ORBAX / STATE, abstract_state, shardings)
            with orbax_context():
                loaded = ocp.load_checkpointables(path / _ORBAX, {METADATA: None})
        except VerificationError as error:
            others = [other for other in self.steps() if other != step]
            raise VerificationError(
                f"checkpoint {step} is damaged and no other is taken unasked; the others are {_list(others)}: "
                f"remove {path} to go on from the newest of them\n{error}"
            ) from None
        return state, loaded[METADATA]

    def protect(self, step: int) -> None:
        """Keeps a step from being removed by retention, until `unprotect`."""
        self._mark(step, "protected")

    def unprotect(self, step: int) -> None:
        """Takes `protect` back."""
        self._unmark(step, "protected")

    def set_best(self, step: int) -> None:
        """Marks a step as the best so far; it is kept until another one is marked."""
        self._mark(step, "best")
        for other in marked_in(self.directory, "best") - {step}:
            self._unmark(other, "best")

    def best(self) -> int | None:
        """The step marked as the best, or None."""
        return max(marked_in(self.directory, "best") & set(self.steps()), default=None)

    def remove(self, step: int) -> None:
        """Removes a step, e.g. a damaged one; a crash leaves it whole or gone."""
        self.acquire()
        if is_primary():
            commit.remove(self.path(step))
        self._unmark(step, "best")
        self._unmark(step, "protected")

    def acquire(self) -> None:
        """Takes the folder's writer lock now, and removes what dead writers left.

        Raises:
          MachineError: another process, which is named, writes this folder.
        """
        if self._lock is not None or not is_primary():
            return
        disk.make_directories(self.directory)
        self._lock = WriterLock(self.directory)
        for owner in {commit.leftover_of(path.name) for path in self.directory.iterdir()} - {None}:
            commit.clean(self.directory / str(owner))

    def close(self) -> None:
        """Waits for the save in progress and gives the lock back."""
        try:
            self.wait()
        finally:
            if self._executor is not None:
                self._executor.shutdown()
                self._executor = None
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def _open_draft(self, step: int, parts: dict[str, Chunked]) -> commit.Draft | None:
        """The draft of a step; None in the processes that only add their shards to it."""
        if not is_primary():
            return None
        self.acquire()
        num_bytes = sum(part.dtype.itemsize * math.prod(part.shape) for part in parts.values())
        needed_bytes = int(num_bytes * (1 + _OVERHEAD_SHARE)) + len(parts) * _OVERHEAD_BYTES_PER_LEAF
        disk.require_free(self.directory, needed_bytes, f"checkpoint {step}")
        draft = commit.Draft(self.path(step), format=FORMAT, version=VERSION, id=_draft_id(step))
        draft.counts |= {"step": step, "num_leaves": len(parts), "num_bytes": num_bytes}
        return draft

    def _finish(self, step: int, draft: commit.Draft | None, response: Any, cancelled: threading.Event) -> None:
        """In the background: ends Orbax's part, commits, and only then lets older steps go."""
        try:
            with commit.full_disk_is_an_environment_error(self.path(step)):
                response.result()
                if cancelled.is_set():
                    return
                if draft is not None:
                    draft.commit()
            asyncio.run(meet("checkpoint"))
        finally:
            if draft is not None:
                draft.abandon()
        if draft is not None:
            self._retain(step)

    def _retain(self, newest: int) -> None:
        """Removes, the oldest first, the steps that no rule keeps."""
        rules = [
            policies.LatestN(self._keep_last),
            policies.CustomSteps({newest} | marked_in(self.directory, "best") | marked_in(self.directory, "protected")),
        ]
        if self._keep_every is not None:
            rules.append(policies.EveryNSteps(self._keep_every))
        epoch = datetime.datetime.fromtimestamp(0, datetime.UTC)  # no rule here looks at times
        infos = [_StepInfo(step=step, time=epoch) for step in self.steps()]
        kept = policies.AnyPreservationPolicy(rules).should_preserve(infos, context=policies.PreservationContext())
        for info, keep in zip(infos, kept, strict=True):
            if not keep:
                failpoint("checkpoints.before_remove")
                commit.remove(self.path(info.step))

    def _check(self, path: Path, abstract: Any, check: Check) -> None:
        """Checks a step by its manifest, leaving to the codec the chunks that are about to be read."""
        try:
            manifest = read_manifest(path)
        except FileNotFoundError:
            raise VerificationError(f"{path / 'MANIFEST.json'} is missing; nothing unfinished has that name") from None
        names = [] if abstract is None else arrays.named_leaves(abstract)
        roots = {f"{_ORBAX}/{STATE}/{name}" for name in names}
        read_by_codec = [name for name in manifest.files if array_of_chunk(name) in roots]
        commit.raise_if_damaged(path, compare(path, manifest, check, read_by_codec))

    def _mark(self, step: int, mark: Mark) -> None:
        self.acquire()
        if step not in self.steps():
            raise UsageError(f"step {step} can't be marked as {mark}: there are {_list(self.steps())}")
        if is_primary():
            (self.directory / mark_name(step, mark)).touch()
            disk.fsync(self.directory)

    def _unmark(self, step: int, mark: Mark) -> None:
        self.acquire()
        if is_primary():
            (self.directory / mark_name(step, mark)).unlink(missing_ok=True)
            disk.fsync(self.directory)


def _draft_id(step: int) -> str:
    """Known to every process without asking: the draft of a step is `step_<n>.tmp-<n in hexadecimal>`."""
    return f"{step % (1 << 32):08x}"


def _list(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none"
