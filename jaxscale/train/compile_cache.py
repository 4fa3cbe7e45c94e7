"""XLA's compiled programs kept on disk between processes; what is fetched is what would have been compiled.

The folder is as trusted as the program itself: whoever can write there can run code as this user.
"""

import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxscale.errors import MachineError

# Below this a program compiles faster than the disk gives it back.
_MIN_COMPILE_S = 0.2


def enable(setting: str) -> Path | None:
    """Turns jax's persistent compilation cache on or off for this process.

    Args:
      setting: a folder, `auto` (the user's cache folder) or `off`.

    Returns:
      The folder, or None.

    Raises:
      MachineError: the folder can't be made or written.
    """
    folder = None if setting == "off" else default_folder() if setting == "auto" else Path(setting).absolute()
    if folder is not None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(f"compile_cache={setting}: {error}; name another folder, or 'off'") from error
        if not os.access(folder, os.W_OK):
            raise MachineError(f"compile_cache={setting}: {folder} can't be written; name another folder, or 'off'")
    jax.config.update("jax_compilation_cache_dir", None if folder is None else str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_S)
    # jax opens its cache once; it has to be told that the folder is another one.
    compilation_cache.reset_cache()
    return folder


def default_folder() -> Path:
    """`jaxscale/compile` in the user's cache folder, as the XDG base directory specification names it."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "jaxscale" / "compile"
