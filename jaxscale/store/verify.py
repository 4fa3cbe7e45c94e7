"""Verification of anything the durable layer wrote: one committed directory, or a folder that contains some."""

import dataclasses
import os
from pathlib import Path

from jaxscale.errors import DataError, VerificationError
from jaxscale.store import commit
from jaxscale.store.checksums import Check, Damage, compare
from jaxscale.store.manifest import MANIFEST_NAME, Manifest, read_manifest
from jaxscale.store.step_names import step_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectoryReport:
    """What was found in one committed directory.

    Attributes:
      path: the directory.
      format: what it holds, `unknown` where its manifest is damaged.
      num_files: that its manifest names.
      num_bytes: their sizes' sum.
      damages: files that are not what the manifest says.
    """

    path: Path
    format: str
    num_files: int
    num_bytes: int
    damages: tuple[Damage, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify` looked at.

    Attributes:
      check: how far: `full` is every byte, `sizes` names and sizes.
      directories: one report for each committed directory that is not inside another.
      num_uncovered_files: files of the folder that no manifest covers, e.g. logs; nothing is known of them.
      leftovers: drafts of dead writers, or of live ones; never read by anybody.
    """

    check: Check
    directories: tuple[DirectoryReport, ...]
    num_uncovered_files: int
    leftovers: tuple[Path, ...]

    @property
    def damages(self) -> tuple[Damage, ...]:
        """The damaged files of all directories."""
        return tuple(damage for report in self.directories for damage in report.damages)


def verify(path: str | Path, check: Check = "full") -> Verification:
    """Checks a committed directory, or all of them in a folder, and reports what it found.

    Args:
      path: a committed directory, or a folder with some in it at any depth.
      check: `full` checks every byte, `sizes` names and sizes only.

    Raises:
      DataError: there is no such folder, or nothing committed in it.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        what = "is a file; name the folder that it is in" if path.exists() else "is not there"
        raise DataError(f"{path} {what}: expected a committed directory, or a folder that contains some")
    reports: list[DirectoryReport] = []
    leftovers: list[Path] = []
    num_uncovered_files = 0
    for folder, names, files in os.walk(path):
        here = Path(folder)
        if commit.is_committed(here) or step_of(here.name) is not None:
            reports.append(_verify_directory(here, check))
            names.clear()
            continue
        found = [name for name in names if commit.leftover_of(name) is not None]
        leftovers += [here / name for name in found]
        names[:] = sorted(set(names) - set(found))
        num_uncovered_files += len(files)
    if not reports:
        raise DataError(f"there is nothing committed in {path}: no folder in it has a {MANIFEST_NAME}")
    return Verification(
        check=check,
        directories=tuple(reports),
        num_uncovered_files=num_uncovered_files,
        leftovers=tuple(sorted(leftovers)),
    )


def _verify_directory(path: Path, check: Check) -> DirectoryReport:
    try:
        manifest: Manifest | None = read_manifest(path)
        damages = compare(path, manifest, check) if manifest is not None else []
    except FileNotFoundError:
        manifest, damages = None, [Damage(file=path / MANIFEST_NAME, what="is missing")]
    except (VerificationError, DataError) as error:
        manifest, damages = None, [Damage(file=path / MANIFEST_NAME, what=str(error))]
    return DirectoryReport(
        path=path,
        format=manifest.format if manifest is not None else "unknown",
        num_files=len(manifest.files) if manifest is not None else 0,
        num_bytes=manifest.num_bytes if manifest is not None else 0,
        damages=tuple(damages),
    )
