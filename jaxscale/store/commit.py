"""Committed directories: written beside their place, made durable, and renamed into it in one step.

The format and the argument why every crash leaves either the old or the new are in docs/formats/committed-directory.md.
"""

import contextlib
import dataclasses
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxscale import typed_json
from jaxscale.errors import DataError, MachineError, UsageError, VerificationError
from jaxscale.store import disk
from jaxscale.store.checksums import Check, Damage, compare, file_entry, list_files
from jaxscale.store.failpoints import failpoint
from jaxscale.store.lock import WriterLock
from jaxscale.store.manifest import MANIFEST_NAME, FileEntry, Manifest, read_manifest

_LEFTOVER = re.compile(r"\.(tmp|old)-([0-9a-f]{8}|resumable)$")
_NUM_SEAL_THREADS = 8  # most of them wait for the disk
_SWAP_PATIENCE_S = 5.0  # two renames take microseconds; a stopped writer may take longer
_NUM_NAMED_DAMAGES = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Committed:
    """A committed directory that was opened, and how far it was checked."""

    path: Path
    manifest: Manifest
    check: Check

    @property
    def verified(self) -> bool:
        """Whether every byte was checked, not only names and sizes."""
        return self.check == "full"


class Draft:
    """A committed directory in the making. Write below `path`, fill the attributes in, then `commit`.

    Attributes:
      path: where to write; it is renamed to `final` by `commit`.
      final: the directory's place.
      counts: name to number, for the manifest.
      parents: role to identity, for the manifest.
      config: JSON values or a dataclass of them, for the manifest.
      committed: what `commit` returned; None before.

    Args:
      final: the directory's place.
      format: what the directory holds, e.g. `jaxscale.vectors`.
      version: of that format.
      replace: whether a committed directory that is there already is replaced, in one step.
      resumable: whether the draft is kept when its writer fails or dies, for the next resumable draft to go on in.
      id: 8 hexadecimal digits for the draft's name, where several processes have to know it; random when None.

    Raises:
      MachineError: another writer is at work on `final`, or nothing can be written there.
      UsageError: something is there already that may not be replaced, or a file is where its folder should be.
    """

    def __init__(
        self,
        final: Path,
        *,
        format: str,
        version: int,
        replace: bool = False,
        resumable: bool = False,
        id: str | None = None,
    ) -> None:
        self.final = final.absolute()
        self.counts: dict[str, int | float] = {}
        self.parents: dict[str, str] = {}
        self.config: Any = None
        self.committed: Committed | None = None
        self._format, self._version, self._resumable = format, version, resumable
        self._renaming = False  # from then on `path` may be the name of what was replaced
        self._lock = _lock(self.final)
        try:
            self.path = draft_path(self.final, "resumable" if resumable else id or secrets.token_hex(4))
            _recover(self.final)
            _remove_leftovers(self.final, keep=self.path if resumable else None)
            check_place(self.final, format=format, replace=replace)
            self.path.mkdir(exist_ok=resumable)
            failpoint("commit.draft_opened")
        except BaseException:
            self._lock.release()
            raise

    def commit(self) -> Committed:
        """Makes everything durable, renames the draft into its place, and only then returns.

        Raises:
          OSError: the disk refuses; the place is then as it was.
          DataError: the draft holds something that is not a regular file.
        """
        files = self._seal_files()
        config = typed_json.encode(self.config)
        manifest = Manifest(
            format=self._format,
            version=self._version,
            files=files,
            counts=self.counts,
            parents=self.parents,
            config=config,
            config_hash=typed_json.fingerprint(config),
        )
        failpoint("commit.before_manifest")
        _write_durably(self.path / MANIFEST_NAME, manifest.to_bytes())
        disk.fsync(self.path)
        failpoint("commit.before_rename")
        self._renaming = True
        replaced = self._rename_into_place()
        failpoint("commit.after_rename")
        disk.fsync(self.final.parent)
        failpoint("commit.acknowledged")
        self.committed = Committed(path=self.final, manifest=manifest, check="full")
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)  # what stays, the next writer removes
        self._lock.release()
        return self.committed

    def abandon(self) -> None:
        """Gives the place back as it was; a resumable draft keeps its files. Does nothing after `commit`."""
        if not self._renaming and not self._resumable:
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()

    def _seal_files(self) -> dict[str, FileEntry]:
        """Fsyncs every file and directory; returns what the files must be from now on."""
        failpoint("commit.before_fsync")
        (self.path / MANIFEST_NAME).unlink(missing_ok=True)
        names = sorted(list_files(self.path))

        def seal(name: str) -> FileEntry:
            # The checksum is taken first: the pages are still in memory, and the kernel may write them meanwhile.
            entry = file_entry(self.path / name)
            disk.fsync(self.path / name)
            return entry

        with ThreadPoolExecutor(_NUM_SEAL_THREADS) as pool:
            files = dict(zip(names, pool.map(seal, names), strict=True))
        failpoint("commit.after_fsync")
        for directory, _, _ in os.walk(self.path, topdown=False):
            disk.fsync(Path(directory))
        return files

    def _rename_into_place(self) -> Path | None:
        """Returns where the directory that was replaced is now, if there was one."""
        if not self.final.exists() or not any(self.final.iterdir()):
            os.rename(self.path, self.final)
            return None
        if disk.exchange(self.path, self.final):
            return self.path
        old = self.final.with_name(f"{self.final.name}.old-{secrets.token_hex(4)}")
        os.rename(self.final, old)
        failpoint("commit.between_renames")
        os.rename(self.path, self.final)
        return old


@contextlib.contextmanager
def draft(
    path: str | Path, *, format: str, version: int, replace: bool = False, resumable: bool = False
) -> Iterator[Draft]:
    """Opens a draft; commits it at the end of the block, or abandons it where the block raises.

    Example::

      with commit.draft(out, format="jaxscale.vectors", version=1) as draft:
          arrays.write(draft.path, "vectors", vectors)
          draft.counts["rows"] = len(vectors)

    Args:
      path: the directory's place.
      format: what the directory holds.
      version: of that format.
      replace: whether a committed directory of that format that is there already is replaced, in one step.
      resumable: whether the draft survives its writer's failure (see `Draft`).

    Raises:
      MachineError: another writer is at work on `path`, or the disk is full; nothing has changed then.
      UsageError: something is there already that may not be replaced.
    """
    opened = Draft(Path(path), format=format, version=version, replace=replace, resumable=resumable)
    try:
        with full_disk_is_an_environment_error(opened.final):
            yield opened
            opened.commit()
    finally:
        opened.abandon()


@contextlib.contextmanager
def full_disk_is_an_environment_error(path: Path) -> Iterator[None]:
    """Turns `no space left on device` into a MachineError that says what was not written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MachineError(
            f"the disk is full: {path} was not written and is as it was; free some space and run the same again"
        ) from error


def open_committed(
    path: str | Path, *, format: str | None = None, version: int | None = None, check: Check = "sizes"
) -> Committed:
    """Reads the manifest of a committed directory and checks its files.

    Args:
      path: the directory.
      format: what it must hold; None takes any.
      version: the newest version of the format that the caller can read; None takes any.
      check: `sizes` compares names and sizes only, `full` every byte.

    Raises:
      DataError: there is no committed directory, or it holds something else.
      VerificationError: it is damaged; the message names the files.
    """
    path = Path(path).absolute()
    manifest = _read_manifest(path)
    if format is not None and manifest.format != format:
        raise DataError(f"{path} holds {manifest.format}, expected {format}")
    if version is not None and manifest.version > version:
        raise DataError(
            f"{path} holds version {manifest.version} of {manifest.format}, this jaxscale reads up to {version}; "
            "use a newer jaxscale"
        )
    raise_if_damaged(path, compare(path, manifest, check))
    return Committed(path=path, manifest=manifest, check=check)


def check_place(path: str | Path, *, format: str, replace: bool) -> None:
    """Refuses a place that a draft would not be committed to; for work that is long before its draft is opened.

    Args:
      path: the directory's place.
      format: what the directory will hold.
      replace: whether a committed directory of that format that is there already is replaced.

    Raises:
      UsageError: something is there already that may not be replaced, or a file is where its folder should be.
    """
    final = Path(path).absolute()
    disk.check_directory_above(final)
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return
    if not replace:
        raise UsageError(f"{final} exists already; choose another place, or remove it first")
    if not is_committed(final):
        raise UsageError(f"{final} is not a committed directory and is not replaced; choose another place")
    try:
        found = read_manifest(final).format
    except VerificationError:
        return  # a damaged one may be replaced: that is how it is mended
    if found != format:
        raise UsageError(f"{final} holds {found} and is not replaced by {format}; choose another place")


def is_committed(path: str | Path) -> bool:
    """Whether there is a directory with a manifest at `path`; its files are not looked at."""
    return (Path(path) / MANIFEST_NAME).is_file()


def remove(path: str | Path) -> None:
    """Removes a committed directory; a crash leaves it whole or gone, never with holes.

    Raises:
      MachineError: a writer is at work on it.
    """
    path = Path(path).absolute()
    with WriterLock(path):
        doomed = draft_path(path, secrets.token_hex(4))
        failpoint("commit.before_remove")
        os.rename(path, doomed)
        disk.fsync(path.parent)
        failpoint("commit.removing")
        shutil.rmtree(doomed)


def clean(path: str | Path) -> None:
    """Removes what dead writers of `path` left, and ends a replacement that was cut; a live writer is left alone."""
    path = Path(path).absolute()
    with contextlib.suppress(MachineError), WriterLock(path):
        _recover(path)
        _remove_leftovers(path, keep=None)


def draft_path(final: Path, id: str) -> Path:
    """Where a draft of `final` is written.

    >>> draft_path(Path("out/x"), "0123abcd").as_posix()
    'out/x.tmp-0123abcd'
    """
    return final.with_name(f"{final.name}.tmp-{id}")


def leftover_of(name: str) -> str | None:
    """The name of the directory that a draft, a replaced one or a lock file belongs to; None for any other name.

    >>> leftover_of("step_1.tmp-0123abcd"), leftover_of(".step_1.lock"), leftover_of("step_1")
    ('step_1', 'step_1', None)
    """
    if name.startswith(".") and name.endswith(".lock"):
        return name[1 : -len(".lock")]
    match = _LEFTOVER.search(name)
    return name[: match.start()] if match else None


def raise_if_damaged(path: Path, damages: list[Damage]) -> None:
    """Raises a VerificationError that names the damaged files, if there are any."""
    if not damages:
        return
    named = "".join(f"\n  {damage}" for damage in damages[:_NUM_NAMED_DAMAGES])
    more = len(damages) - _NUM_NAMED_DAMAGES
    rest = f"\n  and {more} more; `jaxscale verify {path}` names all" if more > 0 else ""
    raise VerificationError(f"{path} is damaged; restore it from a copy, or make it again:{named}{rest}")


def _lock(final: Path) -> WriterLock:
    disk.check_directory_above(final)
    try:
        disk.make_directories(final.parent)
        return WriterLock(final)
    except OSError as error:
        raise MachineError(f"{final} can't be written: {error}; choose another place, or make room") from error


def _read_manifest(path: Path) -> Manifest:
    deadline = time.monotonic() + _SWAP_PATIENCE_S
    while True:
        try:
            return read_manifest(path)
        except (FileNotFoundError, NotADirectoryError):
            if path.exists() or not _leftovers(path, "old"):
                break
        # A replacement was cut between its two renames: put the old one back, unless its writer is alive.
        with contextlib.suppress(MachineError), WriterLock(path):
            _recover(path)
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    if path.is_dir():
        raise DataError(
            f"{path} has no {MANIFEST_NAME}: it is no committed directory, or that file was deleted from it"
        )
    raise DataError(f"there is no committed directory {path}")


def _leftovers(final: Path, kind: str) -> list[Path]:
    if not final.parent.is_dir():
        return []
    prefix = f"{final.name}.{kind}-"
    return sorted(p for p in final.parent.iterdir() if p.name.startswith(prefix) and leftover_of(p.name) == final.name)


def _recover(final: Path) -> None:
    """Under the lock: puts the old directory back where a replacement was cut between its two renames."""
    olds = _leftovers(final, "old")
    if olds and not final.exists():
        os.rename(olds.pop(), final)
        disk.fsync(final.parent)


def _remove_leftovers(final: Path, keep: Path | None) -> None:
    """Under the lock: removes what dead writers left; a live one would hold the lock."""
    for leftover in [*_leftovers(final, "tmp"), *_leftovers(final, "old")]:
        if leftover != keep:
            shutil.rmtree(leftover)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        failpoint("commit.manifest_written")
        file.flush()
        os.fsync(file.fileno())
