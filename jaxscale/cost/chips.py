"""The chips that a step may run on: one table of published figures, each with its source.

A figure that no source states is None (of a peak: absent), never a guess. Bandwidths are in bytes/s in one direction;
a link carries as much in the other direction at the same time.
"""

import dataclasses
import math
import re
from typing import Literal

from jaxscale.errors import UsageError

_GIB = 1024**3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """What one chip can do.

    Attributes:
      name: as topologies name it: `v5e` of `v5e:16x16`.
      kind: what it is.
      devices_per_chip: how many devices jax shows of it; each has an equal part of every figure.
      peak_flops_per_s: by dtype, dense (no sparsity), operations/s where the dtype is an integer.
      hbm_bytes: of memory.
      memory_limit_bytes: what a program may use of it: what libtpu's "available HBM" says for the whole chip.
      hbm_bytes_per_s: of that memory.
      num_links: to other chips over the fast network (ICI, NVLink).
      link_bytes_per_s: of one of those links, in one direction.
      torus_dims: how many dims the network's torus has; None where a switch joins all chips of a domain.
      wrap_multiple: a dim of the torus is closed to a ring where its size is a multiple of this; 0 without a torus.
      domain_chips: how many chips the fast network can join.
      dcn_bytes_per_s: over the data-centre network, a chip's share of its host's, in one direction.
      sources: where each figure is stated, by the name of its field.
    """

    name: str
    kind: Literal["tpu", "gpu", "cpu"]
    devices_per_chip: int = 1
    peak_flops_per_s: dict[str, float] = dataclasses.field(default_factory=dict)
    hbm_bytes: int | None = None
    memory_limit_bytes: int | None = None
    hbm_bytes_per_s: float | None = None
    num_links: int | None = None
    link_bytes_per_s: float | None = None
    torus_dims: int | None = None
    wrap_multiple: int = 0
    domain_chips: int | None = None
    dcn_bytes_per_s: float | None = None
    sources: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def egress_bytes_per_s(self) -> float | None:
        """What a chip can send over all its fast links at once."""
        if self.num_links is None or self.link_bytes_per_s is None:
            return None
        return self.num_links * self.link_bytes_per_s

    @property
    def limit_bytes_per_device(self) -> int | None:
        """The memory that one device's program may use: the measured limit, else all that there is."""
        limit = self.hbm_bytes if self.memory_limit_bytes is None else self.memory_limit_bytes
        return None if limit is None else limit // self.devices_per_chip

    def peak_of(self, dtype: str) -> float | None:
        """The dense peak, in FLOP/s per device, of contractions of `dtype`; None where nothing is published.

        A TPU has no float32 peak: its matrix units multiply bfloat16, and jax's default precision makes one pass over
        operands rounded to it, so bfloat16's peak is taken. A GPU's float32 is taken as tensorfloat32 where it has it.

        Reference: JAX documentation, jax.default_matmul_precision,
        https://docs.jax.dev/en/latest/_autosummary/jax.default_matmul_precision.html
        """
        for name in _STAND_INS.get(dtype, (dtype,)):
            if name in self.peak_flops_per_s:
                return self.peak_flops_per_s[name] / self.devices_per_chip
        return self.peak_flops_per_s["bfloat16"] / self.devices_per_chip if self.kind == "tpu" else None


_STAND_INS = {"float32": ("tensorfloat32", "float32")}

_TPU7X_PAGE = "https://docs.cloud.google.com/tpu/docs/tpu7x"
_V4_PAGE = "https://docs.cloud.google.com/tpu/docs/v4"
_V5E_PAGE = "https://docs.cloud.google.com/tpu/docs/v5e"
_V5P_PAGE = "https://docs.cloud.google.com/tpu/docs/v5p"
_V6E_PAGE = "https://docs.cloud.google.com/tpu/docs/v6e"
_BOOK_TPUS = "https://jax-ml.github.io/scaling-book/tpus/ (TPU Specs)"
_BOOK_GPUS = "https://jax-ml.github.io/scaling-book/gpus/ (Summary of GPU specs)"
_A100_PAGE = "https://glennklockwood.com/garden/processors/A100 (after NVIDIA's datasheet nvidia-1758950-r4)"
_H100_PAGE = "https://glennklockwood.com/garden/processors/h100 (after NVIDIA's H100 whitepaper)"
_B200_PAGE = "https://glennklockwood.com/garden/processors/B200 (HGX, after NVIDIA's Blackwell brief)"
_MLPERF_H200 = (
    "https://raw.githubusercontent.com/mlcommons/inference_results_v4.1/main/closed/NVIDIA/systems/"
    "H200-SXM-141GBx8_TRT_MaxQ.json (18 links, 900 GB/s both ways together)"
)
_MLPERF_H100 = (
    "https://github.com/mlcommons/inference_results_v3.1/blob/main/closed/Dell/systems/"
    "XE9680_H100_SXM_80GBx8_TRT.json (8 x 400 Gb/s for 8 chips)"
)
_MEASURED = "libtpu 0.0.52: 'available HBM' of its out-of-memory error, a program too large compiled ahead of time"


def _tpu_sources(page: str, **others: str) -> dict[str, str]:
    fields = ("peak_flops_per_s", "hbm_bytes", "hbm_bytes_per_s", "num_links", "link_bytes_per_s", "torus_dims")
    own = dict.fromkeys((*fields, "domain_chips", "dcn_bytes_per_s"), page)
    return {**own, "memory_limit_bytes": _MEASURED, "wrap_multiple": _BOOK_TPUS, **others}


_TABLE = (
    Chip(
        name="v4",
        kind="tpu",
        peak_flops_per_s={"bfloat16": 275e12, "int8": 275e12},
        hbm_bytes=32 * _GIB,
        memory_limit_bytes=int(30.75 * _GIB),
        hbm_bytes_per_s=1200e9,
        num_links=6,
        link_bytes_per_s=45e9,
        torus_dims=3,
        wrap_multiple=4,
        domain_chips=4096,
        dcn_bytes_per_s=6.25e9,
        sources=_tpu_sources(_V4_PAGE, link_bytes_per_s=_BOOK_TPUS, dcn_bytes_per_s=_BOOK_TPUS),
    ),
    Chip(
        name="v5e",
        kind="tpu",
        peak_flops_per_s={"bfloat16": 197e12, "int8": 393e12},
        # The page says 16 GB; a program may use 15.75 GiB, so they are GiB.
        hbm_bytes=16 * _GIB,
        memory_limit_bytes=int(15.75 * _GIB),
        hbm_bytes_per_s=819e9,
        # 400 GB/s both ways together over 4 ports.
        num_links=4,
        link_bytes_per_s=50e9,
        torus_dims=2,
        wrap_multiple=16,
        domain_chips=256,
        # 2 x 100 Gb/s for a host of 8 chips.
        dcn_bytes_per_s=3.125e9,
        sources=_tpu_sources(_V5E_PAGE),
    ),
    Chip(
        name="v5p",
        kind="tpu",
        # The page of 7x lists 459 for 8 bit as well, the book 918 for int8: they disagree, so int8 is left out.
        peak_flops_per_s={"bfloat16": 459e12},
        hbm_bytes=96 * _GIB,
        memory_limit_bytes=int(95.73 * _GIB),
        hbm_bytes_per_s=2765e9,
        # 1200 GB/s both ways together over the 6 links of a 3D torus.
        num_links=6,
        link_bytes_per_s=100e9,
        torus_dims=3,
        wrap_multiple=4,
        domain_chips=8960,
        dcn_bytes_per_s=6.25e9,
        sources=_tpu_sources(
            _V5P_PAGE, hbm_bytes=_BOOK_TPUS, link_bytes_per_s=_TPU7X_PAGE, dcn_bytes_per_s=_TPU7X_PAGE
        ),
    ),
    Chip(
        name="v6e",
        kind="tpu",
        peak_flops_per_s={"bfloat16": 918e12, "int8": 1836e12},
        hbm_bytes=32 * _GIB,
        memory_limit_bytes=int(31.24 * _GIB),
        hbm_bytes_per_s=1638e9,
        # 800 GB/s both ways together over 4 ports.
        num_links=4,
        link_bytes_per_s=100e9,
        torus_dims=2,
        wrap_multiple=16,
        domain_chips=256,
        dcn_bytes_per_s=12.5e9,
        sources=_tpu_sources(_V6E_PAGE, hbm_bytes=_TPU7X_PAGE, dcn_bytes_per_s=_TPU7X_PAGE),
    ),
    Chip(
        name="tpu7x",
        kind="tpu",
        # Each of its two TensorCores, with its half of the memory, is a device of jax.
        devices_per_chip=2,
        peak_flops_per_s={"bfloat16": 2307e12, "float8": 4614e12},
        hbm_bytes=192 * _GIB,
        memory_limit_bytes=int(2 * 94.74 * _GIB),
        hbm_bytes_per_s=7380e9,
        # 1200 GB/s both ways together over the 6 links of a 3D torus.
        num_links=6,
        link_bytes_per_s=100e9,
        torus_dims=3,
        wrap_multiple=4,
        domain_chips=9216,
        dcn_bytes_per_s=12.5e9,
        sources=_tpu_sources(_TPU7X_PAGE),
    ),
    Chip(
        name="a100",
        kind="gpu",
        peak_flops_per_s={
            "bfloat16": 312e12,
            "float16": 312e12,
            "tensorfloat32": 156e12,
            "float32": 19.5e12,
            "int8": 624e12,
        },
        hbm_bytes=80 * 10**9,
        hbm_bytes_per_s=2039e9,
        num_links=12,
        link_bytes_per_s=25e9,
        domain_chips=8,
        dcn_bytes_per_s=25e9,
        sources={
            **dict.fromkeys(("peak_flops_per_s", "hbm_bytes", "hbm_bytes_per_s"), _A100_PAGE),
            "link_bytes_per_s": _A100_PAGE + ", 300+300 GB/s",
            "num_links": "https://ttsugriy.github.io/distributed-training-book/appendices/hardware-assumptions",
            **dict.fromkeys(
                ("domain_chips", "dcn_bytes_per_s"),
                "https://github.com/calculon-ai/calculon/blob/main/systems/a100_80g.json",
            ),
        },
    ),
    Chip(
        name="h100",
        kind="gpu",
        peak_flops_per_s={
            "bfloat16": 989.4e12,
            "float16": 989.4e12,
            "tensorfloat32": 494.7e12,
            "float32": 66.9e12,
            "float8": 1978.9e12,
            "int8": 1978.9e12,
        },
        hbm_bytes=80 * 10**9,
        hbm_bytes_per_s=3350e9,
        num_links=18,
        link_bytes_per_s=25e9,
        domain_chips=8,
        dcn_bytes_per_s=50e9,
        sources={
            **dict.fromkeys(("peak_flops_per_s", "hbm_bytes", "hbm_bytes_per_s"), _H100_PAGE),
            "link_bytes_per_s": _H100_PAGE + ", 900 GB/s both ways together",
            "num_links": "https://ttsugriy.github.io/distributed-training-book/appendices/hardware-assumptions",
            **dict.fromkeys(("domain_chips", "dcn_bytes_per_s"), _MLPERF_H100),
        },
    ),
    Chip(
        name="h200",
        kind="gpu",
        # The die of the H100.
        peak_flops_per_s={"bfloat16": 989e12, "float16": 989e12, "float8": 1979e12},
        hbm_bytes=141 * 10**9,
        hbm_bytes_per_s=4800e9,
        num_links=18,
        link_bytes_per_s=25e9,
        domain_chips=8,
        sources={
            "peak_flops_per_s": "https://itkb.uw.cz/2026/06/nvidia-h200-vs-b300-precisions-cores.html",
            **dict.fromkeys(("hbm_bytes", "hbm_bytes_per_s"), _BOOK_GPUS),
            **dict.fromkeys(("num_links", "link_bytes_per_s", "domain_chips"), _MLPERF_H200),
        },
    ),
    Chip(
        name="b200",
        kind="gpu",
        peak_flops_per_s={
            "bfloat16": 2250e12,
            "float16": 2250e12,
            "tensorfloat32": 1100e12,
            "float32": 80e12,
            "float8": 4500e12,
            "int8": 4500e12,
        },
        # 1,440 GB for 8 chips in a DGX B200; the chip itself is also sold as one of 192 GB.
        hbm_bytes=180 * 10**9,
        hbm_bytes_per_s=8000e9,
        num_links=18,
        link_bytes_per_s=50e9,
        domain_chips=8,
        sources={
            **dict.fromkeys(("peak_flops_per_s", "hbm_bytes_per_s"), _B200_PAGE),
            "hbm_bytes": "https://brent-newsom-nvidia.github.io/AIPS-Boom/wiki/NVIDIA-DGX-B200",
            "link_bytes_per_s": _B200_PAGE + ", 2 x 900 GB/s",
            **dict.fromkeys(
                ("num_links", "domain_chips"),
                "https://docs.vultr.com/inference-cookbook/cuda/getting-started/hardware-overview",
            ),
        },
    ),
    # Emulated devices of any host: nothing is published that holds for all of them.
    Chip(name="cpu", kind="cpu"),
)
CHIPS: dict[str, Chip] = {chip.name: chip for chip in _TABLE}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """So many chips of one kind, joined by their fast network, and how many such slices.

    Attributes:
      chip: its figures.
      shape: of one slice in chips: the torus's dims, or their number alone.
      num_slices: how many slices the data-centre network joins.
    """

    chip: Chip
    shape: tuple[int, ...]
    num_slices: int = 1

    @classmethod
    def parse(cls, text: str, *, num_slices: int = 1) -> "Topology":
        """The topology that `v5e:16x16`, `h100:8` or `cpu:8` names.

        Raises:
          UsageError: the chip is unknown, or the shape is not one of its network.

        >>> Topology.parse("v5p:4x4x8").num_devices
        128
        """
        name, _, dims = text.partition(":")
        if name not in CHIPS:
            raise UsageError(f"topology {text!r}: unknown chip {name!r}; the chips are {', '.join(CHIPS)}")
        chip = CHIPS[name]
        num_dims = chip.torus_dims or 1
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", dims) or len(dims.split("x")) != num_dims:
            example = f"{name}:{'x'.join(['4'] * num_dims)}"
            raise UsageError(f"topology {text!r}: got shape {dims!r}, expected {num_dims} sizes, as in {example}")
        if num_slices < 1:
            raise UsageError(f"num_slices={num_slices} must be at least 1")
        return cls(chip=chip, shape=tuple(int(size) for size in dims.split("x")), num_slices=num_slices)

    @property
    def num_devices(self) -> int:
        """How many devices jax sees, in all slices."""
        return math.prod(self.shape) * self.num_slices * self.chip.devices_per_chip

    def __str__(self) -> str:
        slices = f" x {self.num_slices} slices" if self.num_slices > 1 else ""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}{slices}"


def chip_of_topology(text: str) -> Chip:
    """The chip of a topology, which need not be all there: `v5e:16x16`, `v5e`, `h100:8`.

    Raises:
      UsageError: the chip is unknown.

    >>> chip_of_topology("v5e:16x16").peak_flops_per_s["bfloat16"]
    197000000000000.0
    """
    name = text.partition(":")[0]
    if name not in CHIPS:
        raise UsageError(f"topology {text!r}: unknown chip {name!r}; the chips are {', '.join(CHIPS)}")
    return CHIPS[name]


def chip_of_device(kind: str) -> Chip | None:
    """The chip that jax calls `kind`, or None where no figures are published for it.

    Args:
      kind: `device_kind` of a device.

    >>> chip_of_device("TPU v5 lite").name, chip_of_device("NVIDIA H100 80GB HBM3").name, chip_of_device("cpu")
    ('v5e', 'h100', None)
    """
    if kind.startswith("NVIDIA "):
        model = re.split(r"[ -]", kind)[1].lower()
        return CHIPS.get(model)
    return CHIPS.get(_TPU_KINDS.get(kind, ""))


# What jax's own TPU kernels compare `device_kind` with.
_TPU_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
