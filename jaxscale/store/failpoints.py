"""Named places where a test can make the durable layer fail: killed, out of space, or with an exception.

The environment variable `JAXSCALE_FAILPOINT` holds `name:action` or `name:action@nth`; the nth (first) time that the
process comes by the place of that name, the action happens. The places are the calls `failpoint("name")` in the source,
and `names_in` finds them all, so that a fault suite can't forget one.
"""

import errno
import os
import re
import signal
import threading
from collections import Counter
from pathlib import Path

from jaxscale.errors import UsageError

VARIABLE = "JAXSCALE_FAILPOINT"
_SPEC = re.compile(r"(?P<name>[a-z_.]+):(?P<action>kill|raise|enospc)(@(?P<nth>[1-9]\d*))?")
_CALL = re.compile(r"^\s*failpoint\(\"([a-z_.]+)\"\)", re.MULTILINE)
_passes: Counter[str] = Counter()
_passes_lock = threading.Lock()


class FailpointReached(Exception):
    """What the action `raise` raises."""


def failpoint(name: str) -> None:
    """Does nothing, unless the environment asks this place to fail.

    Args:
      name: the place, as `module.what_is_next`.

    Raises:
      FailpointReached: the action is `raise`.
      OSError: the action is `enospc`: no space left on device.
      UsageError: the variable can't be read.
    """
    if VARIABLE not in os.environ:
        return
    spec = _SPEC.fullmatch(os.environ[VARIABLE])
    if spec is None:
        raise UsageError(
            f"{VARIABLE}={os.environ[VARIABLE]!r}: expected name:kill, name:raise or name:enospc, and @nth"
        )
    if spec["name"] != name:
        return
    with _passes_lock:
        _passes[name] += 1
        reached = _passes[name] == int(spec["nth"] or 1)
    if reached:
        _fail(name, spec["action"])


def names_in(folder: Path) -> list[str]:
    """The names of all failpoints in the Python files below `folder`, sorted."""
    return sorted({name for file in folder.rglob("*.py") for name in _CALL.findall(file.read_text(encoding="utf-8"))})


def _fail(name: str, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    raise FailpointReached(name)
