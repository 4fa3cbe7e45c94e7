"""Sharding rules by parameter names, as Redco describes them, to be compared with; written from the description.

A leaf's key is the last two names of its path. Keys that end in `kernel` or `embedding` are candidates; the others are
copies. In alphabetical order the first candidate is split over the one model axis on its last valid dim, the next on
the valid dim before that, and so on in turns; a dim is valid where the axis divides it. Over other axes parameters are
copies, and nothing constrains activations.

Reference: Tan et al. 2023, "Redco", section 3, https://arxiv.org/abs/2310.16355
"""

import re
from collections.abc import Mapping

from benchmarks.hand_written import HandWritten

_CANDIDATE = re.compile(r"(kernel|embedding)$")


def redco(shapes: Mapping[str, tuple[int, ...]], num_parts: int) -> HandWritten:
    """The specs that the rules give.

    Args:
      shapes: of the parameters, by path.
      num_parts: the size of the model axis, which is `tensor`.

    >>> redco({"mlp/up/kernel": (8, 16), "mlp/down/kernel": (16, 8), "mlp/up/bias": (16,)}, 4).parameters
    {'mlp/up/kernel': 'tensor, -', 'mlp/down/kernel': '-, tensor'}
    """
    keys = sorted({_key(path) for path in shapes if _CANDIDATE.search(path)})
    specs = {}
    for path, shape in shapes.items():
        valid = [dim for dim, size in enumerate(shape) if size % num_parts == 0]
        if _key(path) not in keys or not valid:
            continue
        turn = keys.index(_key(path)) % 2
        chosen = valid[-1 - turn] if turn < len(valid) else valid[-1]
        specs[path] = ", ".join("tensor" if dim == chosen else "-" for dim in range(len(shape)))
    return HandWritten(name="redco", why="rules by names", parameters=specs)


def _key(path: str) -> str:
    return "/".join(path.split("/")[-2:])
