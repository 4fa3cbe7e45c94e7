"""Huge pages for the memory of steps on CPU, which glibc gives only to a process that is started for them.

A step on CPU takes its temporaries from `malloc` and frees them at its end. Blocks of that size go back to the system
at once, so that every step is handed fresh pages, and each of 4 KiB costs a fault: a tenth to a sixth of the time of
the step of `gpt2_12m`. Pages of 2 MiB cost 500 times fewer. Keeping freed memory in the process (`mallopt`) would cost
none, but small blocks settle in the holes, and the process grows to three or four times what a step needs.
"""

import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

# What a process has in its environment when its program is started: `malloc` asks for huge pages (since glibc 2.35).
TUNABLE = "glibc.malloc.hugetlb=1"
_VARIABLE = "GLIBC_TUNABLES"
_FIRST_GLIBC = (2, 35)
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Starts this process's program anew, in the same process and with the same words, if it then has huge pages.

    Returns where it has them already, where the system gives them to nobody or to everybody, and where the allocator is
    another one. Call it before anything is open or written.
    """
    if gives_huge_pages(os.environ, _SETTING, _glibc()):
        environment = {**os.environ, _VARIABLE: ":".join(filter(None, (os.environ.get(_VARIABLE), TUNABLE)))}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def gives_huge_pages(environment: Mapping[str, str], setting: Path, glibc: str) -> bool:
    """Whether a program that is started with `TUNABLE` has huge pages, and one without it has not.

    Args:
      environment: of the process; a setting of `glibc.malloc.hugetlb` in it is left as it is.
      setting: the file in which Linux says who is given them.
      glibc: as `glibc 2.36`; empty for another C library.
    """
    version = re.fullmatch(r"glibc (\d+)\.(\d+).*", glibc)
    if version is None or tuple(map(int, version.groups())) < _FIRST_GLIBC:
        return False
    if "glibc.malloc.hugetlb" in environment.get(_VARIABLE, ""):
        return False
    try:
        return "[madvise]" in setting.read_text()
    except OSError:
        return False


def computes_on_cpu() -> bool:
    """Whether this process's jax will compute on CPUs, as far as that shows before jax is there.

    It is said by JAX_PLATFORMS or, where that is empty, by the absence of plugins for anything else.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not any(importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))


def _glibc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):  # no such question, or no answer: not glibc
        return ""
