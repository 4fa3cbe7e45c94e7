"""The papers' formulas against sums written out for small sizes."""

import dataclasses

import pytest

from benchmarks.closed_forms import decoder_bytes, stack_bytes
from jaxscale.mesh import MeshSpec
from jaxscale.nn.families import decoder_config, gpt_config

MESH = MeshSpec(fsdp=2, tensor=4)
DECODER = decoder_config(
    num_layers=3, d_model=16, num_heads=8, num_kv_heads=4, d_ff=32, vocab_size=64, max_positions=8, tied_output=False
)


def test_of_a_decoder():
    found = decoder_bytes(DECODER, MESH, num_examples=4, length=8)
    tokens = 4 * 8 // 2
    added = tokens * 16 * (3 * 5 + 2) + tokens * 3
    assert found["tensor"] == pytest.approx(2 * 3 / 4 * 4 * added)
    layers, table = 3 * (16 * 2 * (2 * 8 + 2 * 4) + 3 * 16 * 32) // 4, 64 * 16 // 4
    gathered, scattered, norms = 2 * layers + 3 * table, layers + 2 * table, 7 * 16
    assert found["fsdp"] == pytest.approx(1 / 2 * 4 * (gathered + scattered) + 2 * 1 / 2 * 4 * norms)


def test_a_tied_output_is_one_table_less():
    tied = decoder_bytes(dataclasses.replace(DECODER, tied_output=True), MESH, num_examples=4, length=8)
    untied = decoder_bytes(DECODER, MESH, num_examples=4, length=8)
    assert tied["tensor"] == untied["tensor"]
    assert untied["fsdp"] - tied["fsdp"] == pytest.approx(1 / 2 * 4 * 2 * 64 * 16 / 4)


def test_parallel_layers_add_up_twice():
    parallel = decoder_bytes(dataclasses.replace(DECODER, parallel=True), MESH, num_examples=4, length=8)
    layered = decoder_bytes(DECODER, MESH, num_examples=4, length=8)
    assert layered["tensor"] - parallel["tensor"] == pytest.approx(3 * 3 * 2 * 3 / 4 * 4 * 16 * 16)


def test_heads_that_several_devices_share_add_up_their_gradients():
    shared = decoder_bytes(dataclasses.replace(DECODER, num_kv_heads=2), MESH, num_examples=4, length=8)
    whole = decoder_bytes(DECODER, MESH, num_examples=4, length=8)
    # Each device has one key-value head either way, of which two devices now have the same.
    assert shared["fsdp"] == whole["fsdp"]
    assert shared["tensor"] - whole["tensor"] == pytest.approx(2 * 1 / 2 * 4 * 3 * 2 * 16 * 2 / 2)


def test_one_device_sends_nothing():
    gpt = gpt_config(num_layers=2, d_model=16, num_heads=4, vocab_size=64, max_positions=8)
    assert decoder_bytes(gpt, MeshSpec(), num_examples=4, length=8) == {"tensor": 0.0, "fsdp": 0.0}


def test_of_a_stack():
    found = stack_bytes(
        MESH, num_layers=2, num_sums=4, num_tokens=32, d_model=16, layer_params=12 * 256, small_params=10
    )
    assert found["tensor"] == pytest.approx(2 * 3 / 4 * 4 * 16 * 16 * 2 * 4)
    assert found["fsdp"] == pytest.approx(1 / 2 * 4 * 3 * 2 * 12 * 256 / 4 + 4 * 2 * 10)
