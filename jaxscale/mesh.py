"""The mesh: named axes of devices, from `fsdp=4,tensor=2` to a `jax.sharding.Mesh` over real or emulated devices.

The axes, slowest network first: `slice` (over the data-centre network), `stage` (pipeline), `data` (replicas),
`fsdp` (replicas that share the parameters), `expert`, `sequence` and `tensor`. Every mesh has all seven, most of
them of size 1, so that no code asks whether an axis is there.
"""

import dataclasses
import difflib
import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils, topologies
from jax.sharding import AbstractMesh, AxisType, Mesh

from jaxscale.errors import MachineError, UsageError

AXES = ("slice", "stage", "data", "fsdp", "expert", "sequence", "tensor")
_REST = -1
_MAX_SUGGESTIONS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSpec:
    """How many devices each axis has; at most one may be -1, for all the devices that the others leave."""

    slice: int = 1
    stage: int = 1
    data: int = 1
    fsdp: int = 1
    expert: int = 1
    sequence: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for axis, size in self.sizes.items():
            if type(size) is not int or (size < 1 and size != _REST):
                raise UsageError(
                    f"mesh: {axis}={size} must be a whole number of devices, at least 1 (or -1: all that is left)"
                )
        rest = [axis for axis, size in self.sizes.items() if size == _REST]
        if len(rest) > 1:
            raise UsageError(
                f"mesh: {' and '.join(rest)} are both -1; only one axis can take the devices that are left"
            )

    @classmethod
    def parse(cls, text: str) -> "MeshSpec":
        """The spec that `axis=size,axis=size` says; axes that are not named have one device.

        Raises:
          UsageError: an axis is unknown or named twice, a size is no number, zero or negative, or two are -1.

        >>> str(MeshSpec.parse("tensor=2, fsdp=4"))
        'fsdp=4,tensor=2'
        """
        sizes: dict[str, int] = {}
        for part in text.split(","):
            axis, equals, size = (word.strip() for word in part.partition("="))
            if not equals:
                raise UsageError(f"mesh: got {part.strip()!r} in {text!r}, expected axis=size, as in fsdp=4,tensor=2")
            if axis not in AXES:
                raise UsageError(f"mesh: unknown axis {axis!r}{_close_to(axis)}; the axes are {', '.join(AXES)}")
            if axis in sizes:
                raise UsageError(f"mesh: {axis} is named twice in {text!r}")
            try:
                sizes[axis] = int(size)
            except ValueError:
                raise UsageError(f"mesh: {axis}={size!r} must be a whole number, as in {axis}=4") from None
        return cls(**sizes)

    @property
    def sizes(self) -> dict[str, int]:
        """The size of every axis, in the order of `AXES`."""
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def num_devices(self) -> int:
        """How many devices a mesh of this spec has.

        Raises:
          UsageError: an axis is still -1; `resolve` gives it its size.
        """
        if _REST in self.sizes.values():
            raise UsageError(f"mesh: {self} has an axis of size -1; resolve it against a number of devices first")
        return math.prod(self.sizes.values())

    def resolve(self, num_devices: int) -> "MeshSpec":
        """The spec with -1 replaced, over exactly `num_devices` devices.

        Raises:
          UsageError: the sizes do not multiply to `num_devices`; the message names the nearest that do.

        >>> str(MeshSpec(data=-1, tensor=2).resolve(8))
        'data=4,tensor=2'
        """
        known = math.prod(size for size in self.sizes.values() if size != _REST)
        rest = next((axis for axis, size in self.sizes.items() if size == _REST), None)
        if rest is not None and num_devices % known == 0:
            return dataclasses.replace(self, **{rest: num_devices // known})
        if known == num_devices:
            return self
        needs = f"{self} needs {known if rest is None else f'a multiple of {known}'} devices, {num_devices} are there"
        subset = f", or {self}@0-{known - 1} for the first {known} of them" if known < num_devices else ""
        nearest = " or ".join(map(str, self.nearest(num_devices)))
        raise UsageError(f"mesh: {needs}; use {nearest}{subset if rest is None else ''}")

    def nearest(self, num_devices: int) -> list["MeshSpec"]:
        """The specs over `num_devices` devices that are closest to this one, closest first.

        Only the axes that this spec names, and `data`, may change; the distance is the sum of the ratios' logarithms.
        """
        named = [axis for axis, size in self.sizes.items() if size != 1]
        axes = [*named, *(["data"] if "data" not in named else [])]

        def distance(sizes: tuple[int, ...]) -> tuple[float, int, list[int]]:
            changes = [
                abs(math.log2(size / self.sizes[axis])) if self.sizes[axis] != _REST else 0.0
                for axis, size in zip(axes, sizes, strict=True)
            ]
            return round(sum(changes), 6), sum(change > 0 for change in changes[: len(named)]), [-s for s in sizes]

        ranked = sorted(_factorizations(num_devices, len(axes)), key=distance)
        return [MeshSpec(**dict(zip(axes, sizes, strict=True))) for sizes in ranked[:_MAX_SUGGESTIONS]]

    def __str__(self) -> str:
        return ",".join(f"{axis}={size}" for axis, size in self.sizes.items() if size != 1) or "data=1"


def make_mesh(spec: MeshSpec, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with all seven axes, every one of them Auto.

    With `slice` above 1 the devices of one slice are kept together, so that only the `slice` axis crosses the
    data-centre network. Devices that know no slices (CPU, one GPU node) are cut into equal runs.

    Args:
      spec: the sizes; one may be -1.
      devices: the devices to use, a subset of those there included; all of `jax.devices()` when None.

    Raises:
      UsageError: the sizes do not multiply to the number of devices, or do not fit the devices' slices or network.
    """
    devices = list(jax.devices() if devices is None else devices)
    spec = spec.resolve(len(devices))
    num_slices = len({_slice_of(device) for device in devices})
    if num_slices not in (1, spec.slice):
        raise UsageError(f"mesh: {spec} has slice={spec.slice}, but the devices are in {num_slices} slices")
    shape = tuple(spec.sizes.values())
    try:
        if num_slices > 1:
            grid = mesh_utils.create_hybrid_device_mesh(
                (1, *shape[1:]), (spec.slice, *(1 for _ in shape[1:])), devices, allow_split_physical_axes=True
            )
        else:
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except (ValueError, NotImplementedError, AssertionError) as error:
        raise UsageError(f"mesh: {spec} does not fit the network of these {len(devices)} devices: {error}") from error
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def abstract_mesh(spec: MeshSpec) -> AbstractMesh:
    """The axes of a mesh without its devices: for a `shard_map` that is traced before there are any.

    Args:
      spec: with every size resolved.

    >>> abstract_mesh(MeshSpec(fsdp=4)).size
    4
    """
    return AbstractMesh(tuple(spec.sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_from_text(text: str, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh that a `--mesh` flag names: `fsdp=4,tensor=2`, or `data=4@0-3` for a named subset of the devices.

    Args:
      text: a spec, then perhaps `@` and positions in `devices`, as `0-3,6`. Empty: every device on `data`.
      devices: what the positions count; `jax.devices()` when None.

    Raises:
      UsageError: as `MeshSpec.parse`, `MeshSpec.resolve`, `parse_positions` and `make_mesh` do.
    """
    devices = list(jax.devices() if devices is None else devices)
    axes, at, positions = text.partition("@")
    spec = MeshSpec.parse(axes) if axes.strip() else MeshSpec(data=_REST)
    chosen = [devices[i] for i in parse_positions(positions, len(devices))] if at else devices
    return make_mesh(spec, chosen)


def parse_positions(text: str, num_devices: int) -> list[int]:
    """The positions that `0-3,6` names, in the order written.

    Raises:
      UsageError: one is no number, is not below `num_devices`, or is named twice.

    >>> parse_positions("0-2,6", 8)
    [0, 1, 2, 6]
    """
    positions: list[int] = []
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UsageError(f"mesh: got {part!r} after '@', expected positions of devices, as in data=4@0-3")
        positions += range(int(first), int(last if dash else first) + 1)
    too_large = [i for i in positions if i >= num_devices]
    if too_large:
        raise UsageError(f"mesh: there is no device {too_large[0]}; the {num_devices} devices are 0-{num_devices - 1}")
    if len(set(positions)) != len(positions) or not positions:
        raise UsageError(f"mesh: '@{text}' must name at least one device, and each once")
    return positions


def spec_of(mesh: Mesh) -> MeshSpec:
    """The spec that a mesh made here has, its axes whole or in parts."""
    sizes = dict.fromkeys(AXES, 1)
    for name, size in mesh.shape.items():
        sizes[axis_of(name)] *= size
    return MeshSpec(**sizes)


def axis_of(name: str) -> str:
    """The axis that a mesh's name belongs to: `tensor` for `tensor` itself and for its part `tensor[1:2]`."""
    return name.partition("[")[0]


def part_name(axis: str, start: int, end: int) -> str:
    """The name of the part of an axis that goes from its cut into `start` groups to its cut into `end`.

    >>> part_name("tensor", 2, 8)
    'tensor[2:8]'
    """
    return f"{axis}[{start}:{end}]"


def in_parts(mesh: Mesh, factors: Mapping[str, Sequence[int]]) -> Mesh:
    """The same devices in the same order, with some axes taken apart.

    Args:
      mesh: made here, its axes whole.
      factors: by axis, the ways of its parts, leading part first; their product is the axis's size.
    """
    names: list[str] = []
    sizes: list[int] = []
    for name, size in mesh.shape.items():
        if name not in factors:
            names.append(name)
            sizes.append(size)
            continue
        start = 1
        for ways in factors[name]:
            names.append(part_name(name, start, start * ways))
            sizes.append(ways)
            start *= ways
    if not factors:
        return mesh
    return Mesh(mesh.devices.reshape(sizes), tuple(names), axis_types=(AxisType.Auto,) * len(names))


def initialize_processes(
    *, coordinator: str, num_processes: int, process_id: int, start_timeout_s: int = 60, heartbeat_timeout_s: int = 10
) -> None:
    """Joins this process to the others of one job, so that `jax.devices()` has the devices of all of them.

    Call it before jax is used. When a process is lost, jax ends the others after `heartbeat_timeout_s`: whoever
    started them starts all of them again.

    Args:
      coordinator: `host:port` of process 0.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      start_timeout_s: how long to wait for all of them to come.
      heartbeat_timeout_s: how long a process may be silent before it counts as lost.

    Raises:
      UsageError: `process_id` is not below `num_processes`.
      MachineError: the others can't be reached.
    """
    if not 0 <= process_id < num_processes:
        raise UsageError(f"process_id={process_id} must be at least 0 and below num_processes={num_processes}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM from us and tell nobody but itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=num_processes,
            process_id=process_id,
            initialization_timeout=start_timeout_s,
            heartbeat_timeout_seconds=heartbeat_timeout_s,
            cluster_detection_method="deactivate",
        )
    except RuntimeError as error:
        raise MachineError(
            f"process {process_id} of {num_processes} could not join {coordinator} in {start_timeout_s} s: {error}"
        ) from error


def describe_topology(name: str, *, num_slices: int = 1) -> list[Any]:
    """The devices of a TPU topology that nobody here owns, for `make_mesh` and for compiling ahead of time.

    Args:
      name: a kind and a shape, as `v5e:16x16` or `v5p:4x4x8`.
      num_slices: how many of them, joined over the data-centre network.

    Raises:
      MachineError: libtpu, which knows the topologies, is not installed.
      UsageError: libtpu knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise MachineError(
            f"topology {name!r}: libtpu, which describes TPUs without one, is not installed; "
            "pip install 'jaxscale[tpu]', or try the mesh on emulated devices with --devices N"
        )
    # libtpu would otherwise ask the cloud's metadata server who it is, and refuse a second process.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # A v4 chip shows its two cores as two devices unless it is asked for as one.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    if num_slices > 1:
        options["num_slices"] = num_slices
    try:
        return list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except Exception as error:  # libtpu raises whatever its C++ status says
        raise UsageError(
            f"topology {name!r} with num_slices={num_slices}: libtpu does not know it ({error}); "
            "try one such as v5e:4x4, v5e:16x16, v5p:4x4x4 or v6e:8x8"
        ) from error


def _slice_of(device: Any) -> int:
    return getattr(device, "slice_index", None) or 0


def _close_to(axis: str) -> str:
    close = difflib.get_close_matches(axis, AXES, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _factorizations(number: int, num_factors: int) -> list[tuple[int, ...]]:
    """Every way of writing `number` as an ordered product of `num_factors` factors."""
    if num_factors == 1:
        return [(number,)]
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    divisors = sorted({*small, *(number // d for d in small)})
    return [(d, *rest) for d in divisors for rest in _factorizations(number // d, num_factors - 1)]


__all__ = [
    "AXES",
    "MeshSpec",
    "axis_of",
    "describe_topology",
    "in_parts",
    "initialize_processes",
    "make_mesh",
    "mesh_from_text",
    "parse_positions",
    "part_name",
    "spec_of",
]
