"""A bound on a step's time: what its FLOPs, its memory traffic and its networks need at their peaks, and which is most.

Nothing here is measured, so no step is faster, and real ones are slower: a bound, not a forecast.
"""

import dataclasses
import math
from typing import Literal

from jaxscale.cost.chips import Chip, Topology
from jaxscale.cost.communication import Traffic
from jaxscale.errors import UsageError
from jaxscale.mesh import AXES, MeshSpec

Resource = Literal["compute", "hbm", "ici", "dcn"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepBound:
    """What every resource needs for one step, in seconds, on each device; None where the chip's figure has no source.

    Attributes:
      compute_s: FLOPs of contractions over the peak of their dtype.
      hbm_s: bytes read and written over the memory's bandwidth.
      ici_s: bytes sent over the fast network, axis after axis.
      dcn_s: bytes sent over the data-centre network.
      overlapped_s: the largest of them, where everything runs at the same time.
      serial_s: their sum but for the smaller of compute and memory, where nothing is sent while something is computed.
      bound_by: the resource that needs most.
      pipeline_bubble: the share of the step in which a stage waits; both totals include it.
    """

    compute_s: float | None
    hbm_s: float | None
    ici_s: float | None
    dcn_s: float | None
    overlapped_s: float | None
    serial_s: float | None
    bound_by: Resource | None
    pipeline_bubble: float


def bound_step(
    *,
    flops_by_dtype: dict[str, int],
    hbm_bytes: int,
    traffic: Traffic,
    mesh: MeshSpec,
    topology: Topology,
    num_microbatches: int = 1,
) -> StepBound:
    """The bound of one step.

    Args:
      flops_by_dtype: of one device, by the dtype of the contractions' operands.
      hbm_bytes: that one device reads and writes.
      traffic: what each device sends.
      mesh: how the devices are used.
      topology: what they are.
      num_microbatches: that go through the pipeline's stages.

    Raises:
      UsageError: the mesh has another number of devices than the topology.

    Reference: Williams et al. 2009, Roofline, https://doi.org/10.1145/1498765.1498785; Austin et al. 2025, How to Scale
    Your Model, sections 1 and 3, https://jax-ml.github.io/scaling-book/
    """
    if mesh.num_devices != topology.num_devices:
        raise UsageError(f"mesh {mesh} has {mesh.num_devices} devices, topology {topology} has {topology.num_devices}")
    chip = topology.chip
    bubble = pipeline_bubble(mesh.stage, num_microbatches)
    compute = _compute_s(flops_by_dtype, chip)
    hbm = _over(hbm_bytes, chip.hbm_bytes_per_s, chip)
    ici = _ici_s(traffic, mesh, topology)
    sent = traffic.bytes_moved(network="dcn")
    dcn = _over(sent, chip.dcn_bytes_per_s, chip) if sent else 0.0
    terms: dict[Resource, float | None] = {"compute": compute, "hbm": hbm, "ici": ici, "dcn": dcn}
    known = {name: seconds for name, seconds in terms.items() if seconds is not None}
    complete = len(known) == len(terms)
    busy = 1 - bubble
    most = max((seconds, name) for name, seconds in known.items())[1] if complete else None
    return StepBound(
        compute_s=compute,
        hbm_s=hbm,
        ici_s=ici,
        dcn_s=dcn,
        overlapped_s=max(known.values()) / busy if complete else None,
        serial_s=(max(known["compute"], known["hbm"]) + known["ici"] + known["dcn"]) / busy if complete else None,
        bound_by=most,
        pipeline_bubble=bubble,
    )


def pipeline_bubble(num_stages: int, num_microbatches: int) -> float:
    """The share of a step in which a pipeline's stage has nothing to do: (p - 1) / (m + p - 1).

    Args:
      num_stages: p.
      num_microbatches: m.

    Reference: Huang et al. 2019 (GPipe), section 2.3, https://arxiv.org/abs/1811.06965

    >>> pipeline_bubble(4, 12)
    0.2
    """
    return (num_stages - 1) / (num_microbatches + num_stages - 1)


def axis_bandwidths(mesh: MeshSpec, topology: Topology) -> dict[str, float]:
    """What each device can send along each axis of its slice's mesh, in bytes/s; none where the chip has no figure.

    Of a torus, dims go to axes, innermost axis first, whole where they fit: an axis made of whole dims sends both ways
    along each, 2 links a dim (1 a dim that is too short to be closed to a ring); an axis that has a part of a dim has
    the links of one dim that is not closed. Behind a switch, and between the two halves of a chip that is two
    devices, every axis has all links.

    Reference: Austin et al. 2025, How to Scale Your Model, section 2, https://jax-ml.github.io/scaling-book/tpus/
    """
    chip = topology.chip
    if chip.num_links is None or chip.link_bytes_per_s is None:
        return {}
    axes = [axis for axis in reversed(AXES) if mesh.sizes[axis] > 1 and axis != "slice"]
    if chip.torus_dims is None:
        return dict.fromkeys(axes, chip.num_links * chip.link_bytes_per_s / chip.devices_per_chip)
    left = sorted(topology.shape)
    bandwidths = {}
    for axis in axes:
        dims = _dims_of(mesh.sizes[axis], left)
        links = sum(_links(size, chip) for size in dims) or 1
        for size in dims:
            left.remove(size)
        if not dims:
            _take_part(mesh.sizes[axis], left)
        bandwidths[axis] = links * chip.link_bytes_per_s / chip.devices_per_chip
    return bandwidths


def _dims_of(size: int, left: list[int]) -> list[int]:
    """The fewest whole dims of the torus whose product is `size`; none where there are no such."""
    found: list[int] | None = None
    for chosen in range(1, 2 ** len(left)):
        dims = [dim for i, dim in enumerate(left) if chosen >> i & 1]
        if math.prod(dims) == size and (found is None or len(dims) < len(found)):
            found = dims
    return found or []


def _take_part(size: int, left: list[int]) -> None:
    """Takes `size` chips of the smallest dim that can give them."""
    for i, dim in enumerate(left):
        if dim % size == 0:
            left[i] = dim // size
            return


def _links(size: int, chip: Chip) -> int:
    """Links that a device sends over along a whole dim of the torus; a ring of two has one neighbour."""
    return 2 if size > 2 and chip.wrap_multiple and size % chip.wrap_multiple == 0 else 1


def _compute_s(flops_by_dtype: dict[str, int], chip: Chip) -> float | None:
    total = 0.0
    for dtype, flops in flops_by_dtype.items():
        peak = chip.peak_of(dtype)
        if peak is None:
            return None
        total += flops / peak
    return total


def _over(num_bytes: float, bytes_per_s: float | None, chip: Chip) -> float | None:
    return None if bytes_per_s is None else num_bytes * chip.devices_per_chip / bytes_per_s


def _ici_s(traffic: Traffic, mesh: MeshSpec, topology: Topology) -> float | None:
    """Axis after axis: a collective over several axes goes at the rate of all their links together."""
    bandwidths = axis_bandwidths(mesh, topology)
    total = 0.0
    for (_, axes), num_bytes in traffic.by_kind_and_axes.items():
        if "slice" in axes:
            continue
        rate = sum(bandwidths.get(axis, 0.0) for axis in axes)
        if not rate:
            return None
        if topology.chip.torus_dims is None:
            rate = max(bandwidths[axis] for axis in axes)
        total += num_bytes / rate
    return total
