"""XLA's compiled programs kept on disk between processes; what is fetched is what would have been compiled.

The folder is as trusted as the program itself: whoever can write there can run code as this user.

A mesh of several CPU devices does without: there, programs read back from disk hung now and then, some devices in one
collective and the rest in another, which programs compiled afresh did not (jaxlib 0.10.2; see docs/log.md). XLA's CPU
runtime orders collectives by a resource that they share, and by its source reading back makes one for each of them.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from jaxscale.errors import MachineError

# Below this a program compiles faster than the disk gives it back.
_MIN_COMPILE_S = 0.2
_OPTIONS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@contextlib.contextmanager
def enabled(setting: str, mesh: Mesh) -> Iterator[Path | None]:
    """Turns jax's persistent compilation cache on or off for this process, and back at the end.

    Args:
      setting: a folder, `auto` (the user's cache folder) or `off`.
      mesh: where the programs run; several CPU devices turn the cache off.

    Yields:
      The folder, or None where there is no cache.

    Raises:
      MachineError: the folder can't be made or written.
    """
    folder = _folder(setting, mesh)
    if folder is not None:
        _make(folder, setting)
    before = {name: getattr(jax.config, name) for name in _OPTIONS}
    _configure(dict(zip(_OPTIONS, (None if folder is None else str(folder), _MIN_COMPILE_S), strict=True)))
    try:
        yield folder
    finally:
        _configure(before)


def is_safe_on(mesh: Mesh) -> bool:
    """Whether programs for this mesh may be read back from disk."""
    return mesh.size == 1 or any(device.platform != "cpu" for device in mesh.devices.flat)


def default_folder() -> Path:
    """`jaxscale/compile` in the user's cache folder, as the XDG base directory specification names it."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "jaxscale" / "compile"


def _folder(setting: str, mesh: Mesh) -> Path | None:
    if setting == "off" or not is_safe_on(mesh):
        return None
    return default_folder() if setting == "auto" else Path(setting).absolute()


def _make(folder: Path, setting: str) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"compile_cache={setting}: {error}; name another folder, or 'off'") from error
    if not os.access(folder, os.W_OK):
        raise MachineError(f"compile_cache={setting}: {folder} can't be written; name another folder, or 'off'")


def _configure(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        jax.config.update(name, value)
    # jax opens its cache once; it has to be told that the folder is another one.
    compilation_cache.reset_cache()
