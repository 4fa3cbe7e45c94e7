"""The table of chips: every figure has a source, and topologies parse or are refused."""

import dataclasses

import pytest

from jaxscale import typed_json
from jaxscale.cost.chips import CHIPS, Chip, Topology, chip_of_topology
from jaxscale.errors import UsageError

_NO_FIGURES = {"name", "kind", "devices_per_chip", "sources"}
_FIGURES = [f.name for f in dataclasses.fields(Chip) if f.name not in _NO_FIGURES]


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_every_figure_has_a_source_and_every_source_a_figure(chip):
    stated = {name for name in _FIGURES if getattr(chip, name)}
    assert set(chip.sources) == stated
    assert all("https://" in source or source.startswith("libtpu") for source in chip.sources.values())


def test_the_chips_that_were_asked_for():
    assert set(CHIPS) == {"v4", "v5e", "v5p", "v6e", "tpu7x", "a100", "h100", "h200", "b200", "cpu"}


def test_figures_against_the_pages_they_come_from():
    # Google states ICI both ways together, in GB/s per chip: v5e 400, v6e 800, v5p and 7x 1200; NVIDIA NVLink likewise.
    both_ways = {
        "v5e": 400e9,
        "v6e": 800e9,
        "v5p": 1200e9,
        "tpu7x": 1200e9,
        "a100": 600e9,
        "h100": 900e9,
        "b200": 1.8e12,
    }
    for name, rate in both_ways.items():
        assert 2 * CHIPS[name].egress_bytes_per_s == rate
    # A v5e pod of 256: 50.63 PFLOP/s; a DCN of 6.4 Tb/s.
    assert 256 * CHIPS["v5e"].peak_flops_per_s["bfloat16"] == pytest.approx(50.63e15, rel=0.01)
    assert 256 * CHIPS["v5e"].dcn_bytes_per_s * 8 == pytest.approx(6.4e12)
    assert 256 * CHIPS["v6e"].peak_flops_per_s["bfloat16"] == pytest.approx(234.9e15, rel=0.01)


def test_a_limit_is_below_the_memory_and_per_device():
    for chip in CHIPS.values():
        if chip.memory_limit_bytes is not None:
            assert 0.95 * chip.hbm_bytes < chip.memory_limit_bytes < chip.hbm_bytes
    assert CHIPS["tpu7x"].limit_bytes_per_device == int(2 * 94.74 * 1024**3) // 2
    assert CHIPS["h100"].limit_bytes_per_device == 80 * 10**9
    assert CHIPS["cpu"].limit_bytes_per_device is None


def test_peaks_of_dtypes_that_stand_for_others():
    assert CHIPS["v5e"].peak_of("float32") == 197e12
    assert CHIPS["tpu7x"].peak_of("bfloat16") == 2307e12 / 2
    assert CHIPS["h100"].peak_of("float32") == 494.7e12
    assert CHIPS["h200"].peak_of("float32") is None
    assert CHIPS["cpu"].peak_of("float32") is None


@pytest.mark.parametrize(
    ("text", "num_slices", "num_devices"),
    [("v5e:16x16", 1, 256), ("v5p:4x4x8", 2, 256), ("tpu7x:2x2x1", 1, 8), ("h100:8", 4, 32), ("cpu:8", 1, 8)],
)
def test_topologies(text, num_slices, num_devices):
    topology = Topology.parse(text, num_slices=num_slices)
    assert topology.num_devices == num_devices
    assert topology.chip is chip_of_topology(text)


@pytest.mark.parametrize("text", ["v9:4x4", "v5e:16", "v5e:0x4", "v5e", "v5p:4x4", "h100:8x8", "v5e:4x4x"])
def test_refuses_topologies_that_are_none(text):
    with pytest.raises(UsageError, match="topology"):
        Topology.parse(text)


def test_survives_json():
    for chip in CHIPS.values():
        assert typed_json.decode(Chip, typed_json.encode(chip)) == chip
