"""Which axes of a mesh a group of devices spans: from the groups that HLO writes to the names of the axes.

XLA numbers the devices of a program in the order in which the mesh holds them (`mesh.devices.flat`), whatever their
own ids are, so a number in a group is a position in the mesh, its last axis fastest.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Int

# Groups of equal size, one a row.
Groups = Int[np.ndarray, "groups size"]

_LIST = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, ?device_ids=\((.*?)\))? \{([^}]*)\}")
_DEVICE_IOTA = re.compile(r"\[([1-9][\d,]*)\](?:T\(([\d,]+))?")
_AXIS = re.compile(r"'?([\w.\-]+)'?(?::\((\d+)\)(\d+))?")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")


def parse_groups(attributes: str, num_devices: int) -> Groups | None:
    """The groups that a collective's `replica_groups` names; None where it has none.

    Args:
      attributes: of the instruction; the groups may be a list, an iota with a transposition, or axes of a mesh.
      num_devices: of the program; an empty list is one group of all of them.

    >>> parse_groups("replica_groups={{0,2},{1,3}}", 4).tolist()
    [[0, 2], [1, 3]]
    >>> parse_groups("replica_groups=[2,2]<=[2,2]T(1,0)", 4).tolist()
    [[0, 2], [1, 3]]
    >>> parse_groups("replica_groups=mesh['a'=2,'b'=2] {'a'}", 4).tolist()
    [[0, 2], [1, 3]]
    """
    if (match := _LIST.search(attributes)) is not None:
        rows = [_numbers(row) for row in re.findall(r"\{([\d,]*)\}", match[1])]
        return np.array(rows) if rows else np.arange(num_devices)[None, :]
    if (match := _IOTA.search(attributes)) is not None:
        return _iota(match[2], match[3]).reshape(_numbers(match[1]))
    if (match := _MESH.search(attributes)) is not None:
        return _mesh_groups(match[1], match[2], match[3])
    return None


def parse_pairs(attributes: str) -> list[tuple[int, int]] | None:
    """The pairs (from, to) of a permutation that differ; None where the instruction names none.

    >>> parse_pairs("source_target_pairs={{0,1},{1,0},{2,2}}")
    [(0, 1), (1, 0)]
    """
    match = _PAIRS.search(attributes)
    if match is None:
        return None
    pairs = re.findall(r"\{(\d+),(\d+)\}", match[1])
    return [(int(source), int(target)) for source, target in pairs if source != target]


def axes_spanned(groups: Groups, axes: Mapping[str, int]) -> tuple[str, ...]:
    """The fewest axes whose groups hold the given groups; a group may be a part of an axis.

    Args:
      groups: positions in the mesh.
      axes: the sizes of all its axes, in their order.

    >>> axes_spanned(np.array([[0, 2], [1, 3]]), {"fsdp": 2, "tensor": 2})
    ('fsdp',)
    """
    for names in _subsets(axes):
        group_of = _group_numbers(names, axes)[groups]
        if np.all(group_of == group_of[:, :1]):
            return names
    raise ValueError(f"groups with positions up to {int(np.max(groups))} do not lie in a mesh of {dict(axes)}")


def _subsets(axes: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    """All choices of axes that have several devices, the fewest devices first."""
    used = [axis for axis, size in axes.items() if size > 1]
    choices = [c for count in range(len(used) + 1) for c in itertools.combinations(used, count)]
    yield from sorted(choices, key=lambda names: (math.prod(axes[name] for name in names), len(names)))


def _group_numbers(names: tuple[str, ...], axes: Mapping[str, int]) -> Int[np.ndarray, "devices"]:
    """For every position the number of its group, where a group varies along `names` only."""
    kept = [1 if axis in names else size for axis, size in axes.items()]
    numbers = np.arange(math.prod(kept)).reshape(kept)
    return np.broadcast_to(numbers, tuple(axes.values())).reshape(-1)


def _mesh_groups(mesh: str, device_ids: str | None, axes: str) -> Groups:
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.\-]+)'?=(\d+)", mesh)}
    devices = np.arange(math.prod(sizes.values())) if device_ids is None else _device_ids(device_ids)
    # A grouped axis may be a part of a mesh axis: `a:(2)4` has 2 * before it and 4 values. So every axis is cut into
    # such parts, and the grouped ones become the row.
    parts: list[tuple[int, bool]] = []
    grouped: list[tuple[str, int, int]] = [
        (name, int(before or 1), int(size or sizes[name])) for name, before, size in _AXIS.findall(axes)
    ]
    order: list[tuple[str, int]] = []
    for name, size in sizes.items():
        before = 1
        for _, start, length in sorted(entry for entry in grouped if entry[0] == name):
            parts += [(start // before, False), (length, True)]
            order += [(name, -1), (name, start)]
            before = start * length
        parts.append((size // before, False))
        order.append((name, -1))
    rows = [i for i, (_, inside) in enumerate(parts) if not inside]
    columns = [order.index((name, start)) for name, start, _ in grouped]
    num_columns = math.prod(length for _, _, length in grouped)
    return devices.reshape([size for size, _ in parts]).transpose([*rows, *columns]).reshape(-1, num_columns)


def _device_ids(text: str) -> Int[np.ndarray, "devices"]:
    """The devices of a mesh in its order: `[4,2]T(1,0)` transposes an iota of that shape, else they are a list."""
    match = _DEVICE_IOTA.match(text)
    if match is not None:
        return _iota(match[1], match[2]).reshape(-1)
    return np.array([int(number) for number in re.findall(r"\d+", text)])


def _iota(dims: str, permutation: str | None) -> Int[np.ndarray, "..."]:
    sizes = _numbers(dims)
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers if permutation is None else numbers.transpose(_numbers(permutation))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
