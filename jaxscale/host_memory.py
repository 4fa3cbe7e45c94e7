"""Memory that a process frees stays its own, so that the next step on CPU finds it again. Imports no jax."""

import ctypes
import importlib.util
import os
import sys

# glibc's parameters, by malloc.h: the size of a free top that goes back to the system, how many blocks may have a
# mapping of their own, how many arenas there may be.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = -1


def keep_freed_memory() -> bool:
    """Tells the allocator to keep what is freed. Call it before jax has devices, and with them threads that allocate.

    A step on CPU takes its temporaries from `malloc` and frees them at its end. glibc gives blocks above 32 MiB back to
    the system at once, so that every step is handed fresh pages, and each 4 KiB of them costs a fault and a wipe: a
    sixth of the time of the step of `gpt2_12m`. Kept, they are paid for once. The process then never becomes smaller
    than it was at its largest, and all threads allocate from one arena, as the others can't hold such blocks.

    Returns:
      Whether the allocator knows how; others than glibc's do not.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc: macOS and musl lack it, Windows has no process to open
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1))
    return [mallopt(name, value) for name, value in settings] == [1] * len(settings)


def computes_on_cpu() -> bool:
    """Whether this process's jax will compute on CPUs, as far as that shows before jax is there.

    It is said by JAX_PLATFORMS or, where that is empty, by the absence of plugins for anything else.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return sys.platform != "darwin" and not any(importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))
