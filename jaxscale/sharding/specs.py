"""How a plan writes a spec: for every dim of an array the mesh axes, or parts of axes, that it is split over.

An entry is the name of an axis, `tensor`, or a part of one, `tensor[1:2]`. Cut an axis of 8 devices in 2 and each half
in 4: `tensor[1:2]` is the leading part, of 2 ways, `tensor[2:8]` the rest, of 8 / 2 = 4. In general `axis[a:b]` goes
from the cut into `a` groups to the cut into `b`, and has b / a ways; `tensor[1:8]` is the whole axis, and written
`tensor`. An array that is split over a part only is copied over the other parts.
"""

import itertools
import math
from collections.abc import Iterable, Sequence

from jax.sharding import PartitionSpec

from jaxscale.mesh import AXES, MeshSpec, axis_of, part_name

DimAxes = tuple[str, ...]
Spec = tuple[DimAxes, ...]
# Of every axis that some array is split over in part: the ways of its parts, leading part first.
AxisFactors = dict[str, tuple[int, ...]]

# A batch's examples are split over every axis but these: the devices of one `tensor` group compute parts of the same
# examples, those of a `sequence` group their positions, and those of different stages the same at different times.
_AXES_WITHOUT_BATCH = ("stage", "sequence", "tensor")
BATCH_AXES = tuple(axis for axis in AXES if axis not in _AXES_WITHOUT_BATCH)


def partition_spec(spec: Spec, factors: AxisFactors | None = None) -> PartitionSpec:
    """The spec in the form jax knows.

    Args:
      spec: of an array.
      factors: the axes that the mesh has as parts; none where it has them whole.

    >>> tuple(partition_spec(((), ("fsdp",), ())))
    (None, 'fsdp')
    >>> tuple(partition_spec((("tensor",), ("fsdp",)), {"tensor": (2, 4)}))
    (('tensor[1:2]', 'tensor[2:8]'), 'fsdp')
    """
    factors = factors or {}
    named = [[name for entry in axes for name in names_on_mesh(entry, factors)] for axes in spec]
    entries = [names[0] if len(names) == 1 else tuple(names) or None for names in named]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def spec_text(spec: Spec) -> str:
    """A spec for people.

    >>> spec_text(((), ("fsdp",), ("tensor", "data")))
    '-, fsdp, tensor*data'
    """
    return ", ".join("*".join(axes) or "-" for axes in spec)


def bounds(mesh: MeshSpec, entry: str) -> tuple[int, int]:
    """The cuts that an entry goes from and to.

    >>> bounds(MeshSpec(tensor=8), "tensor"), bounds(MeshSpec(tensor=8), "tensor[2:8]")
    ((1, 8), (2, 8))
    """
    axis = axis_of(entry)
    if entry == axis:
        return 1, mesh.sizes[axis]
    start, _, end = entry[len(axis) + 1 : -1].partition(":")
    return int(start), int(end)


def part(mesh: MeshSpec, axis: str, start: int, end: int) -> str:
    """The entry of an axis from the cut into `start` groups to the cut into `end`."""
    return axis if (start, end) == (1, mesh.sizes[axis]) else part_name(axis, start, end)


def num_parts(mesh: MeshSpec, axes: Iterable[str]) -> int:
    """How many parts a dim has that is split over `axes`.

    >>> num_parts(MeshSpec(fsdp=3, tensor=8), ("fsdp", "tensor[2:8]"))
    12
    """
    cuts = [bounds(mesh, entry) for entry in axes]
    return math.prod(end // start for start, end in cuts)


def merged(mesh: MeshSpec, axes: Sequence[str]) -> DimAxes:
    """The same split with parts of an axis that follow each other written as one.

    >>> merged(MeshSpec(tensor=8), ("tensor[1:2]", "tensor[2:8]", "fsdp"))
    ('tensor', 'fsdp')
    """
    made: list[str] = []
    for entry in axes:
        axis, (start, end) = axis_of(entry), bounds(mesh, entry)
        if made and axis_of(made[-1]) == axis and bounds(mesh, made[-1])[1] == start:
            start = bounds(mesh, made.pop())[0]
        made.append(part(mesh, axis, start, end))
    return tuple(made)


def overlap(mesh: MeshSpec, left: str, right: str) -> bool:
    """Whether two entries have devices of one axis in common, so that no array may be split over both.

    >>> overlap(MeshSpec(tensor=8), "tensor[1:2]", "tensor[2:8]"), overlap(MeshSpec(tensor=8), "tensor", "tensor[2:8]")
    (False, True)
    """
    if axis_of(left) != axis_of(right):
        return False
    (a, b), (c, d) = bounds(mesh, left), bounds(mesh, right)
    return a < d and c < b


def factors_of(mesh: MeshSpec, specs: Iterable[Spec]) -> AxisFactors | None:
    """The axes that the specs take in parts, with the ways of the parts; None where the cuts don't fit each other.

    >>> factors_of(MeshSpec(tensor=8), [(("tensor[1:2]",),), (("tensor",),)])
    {'tensor': (2, 4)}
    """
    cuts: dict[str, set[int]] = {}
    for spec in specs:
        for entry in {entry for axes in spec for entry in axes}:
            if entry not in AXES:
                axis = axis_of(entry)
                cuts.setdefault(axis, {1, mesh.sizes[axis]}).update(bounds(mesh, entry))
    factors = {}
    for axis in sorted(cuts, key=AXES.index):
        ordered = sorted(cuts[axis])
        if any(after % before for before, after in itertools.pairwise(ordered)):
            return None
        factors[axis] = tuple(after // before for before, after in itertools.pairwise(ordered))
    return factors


def legal_sizes(size: int) -> str:
    """The axis sizes, up to 1024, that divide a dim of `size`.

    >>> legal_sizes(12)
    '1, 2, 3, 4, 6, 12'
    """
    return ", ".join(str(n) for n in range(1, min(size, 1024) + 1) if size % n == 0)


def names_on_mesh(entry: str, factors: AxisFactors) -> list[str]:
    """The axes of a factored mesh that an entry stands for.

    >>> names_on_mesh("tensor", {"tensor": (2, 4)}), names_on_mesh("fsdp", {"tensor": (2, 4)})
    (['tensor[1:2]', 'tensor[2:8]'], ['fsdp'])
    """
    axis = axis_of(entry)
    if axis not in factors:
        return [entry]
    cuts = [1]
    for ways in factors[axis]:
        cuts.append(cuts[-1] * ways)
    whole = MeshSpec(**{axis: cuts[-1]})
    first, last = bounds(whole, entry)
    return [part_name(axis, start, end) for start, end in itertools.pairwise(cuts) if first <= start and end <= last]
