"""What derived plans move: on emulated devices against budgets written out, on TPU programs against goldens."""

import importlib.util
import json
from importlib import metadata
from pathlib import Path

import jax
import pytest

from benchmarks.collective_programs import BY_HAND, DERIVED, contestants, lowered
from benchmarks.collectives import budget, by_axes, keep, moved
from jaxscale.cost.compiled import totals
from jaxscale.mesh import MeshSpec
from jaxscale.sharding.collectives import assert_collectives, collectives
from tests.benchmarks.small_cases import SMALL, small

MESH = MeshSpec(fsdp=2, tensor=4)
GOLDEN = json.loads(Path(__file__).with_name("collectives_golden.json").read_text())

# Of the small cases, in bytes: what one device of `tensor` holds of the residual stream, and of two layers' matrices.
TOKENS = 8 * 16 // MESH.fsdp
STREAM = 4 * TOKENS * 64
LAYERS = 4 * 2 * 12 * 64 * 64 // MESH.tensor
TABLE = 4 * 512 * 64 // MESH.tensor
# The softmax over a split vocabulary adds up a maximum, a denominator and a target's score for every token.
SOFTMAX = 4 * 3 * TOKENS
# Both leaves of the batch are gathered for the lookups, and the rows that were looked up change their split twice.
TOKEN_IDS = 2 * 4 * 8 * 16
LOOKUP = {"all_to_all": (2, 2 * STREAM)}
BIASES_AND_NORMS = 4 * 2 * (4 * 64 + 2 * 64 + 3 * 64 // MESH.tensor + 4 * 64 // MESH.tensor)
# XLA on CPU adds up what several matmuls read one by one, so that a layer's backward pass adds up more than on a TPU.
# It has no reduce_scatter, and may join sums: their number is not what is tested where versions of XLA differ in it.
BUDGETS = {
    # Forward 2, attention again 1; backward the gate and up, and queries, keys and values. Norms are copies.
    "decoder": {
        "tensor": {"all_reduce": (None, (1 + 2 * 8 + 1) * STREAM + SOFTMAX)},
        "fsdp": {
            "all_reduce": (None, LAYERS + TABLE + 4 * 5 * 64 + 2 * 4),
            "all_gather": (None, 2 * LAYERS + TABLE + TOKEN_IDS),
            **LOOKUP,
        },
    },
    # Backward only two: queries, keys and values are one matmul. The table of positions is split over fsdp.
    "fused_gpt2": {
        "tensor": {"all_reduce": (14, (1 + 2 * 5 + 1) * STREAM + SOFTMAX)},
        "fsdp": {
            "all_reduce": (None, LAYERS + TABLE + 4 * 16 * 64 + BIASES_AND_NORMS + 4 * 2 * 64 + 2 * 4),
            "all_gather": (None, 2 * LAYERS + TABLE + 4 * 16 * 64 + TOKEN_IDS),
            **LOOKUP,
        },
    },
    # Nothing is computed again, so that matrices are gathered once.
    "flax_attention": {
        "tensor": {"all_reduce": (8, 2 * 6 * STREAM)},
        "fsdp": {"all_reduce": (1, LAYERS + BIASES_AND_NORMS + 4), "all_gather": (None, LAYERS)},
    },
}


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Optax's Adam mixes floats with its int32 count."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("name", SMALL)
def test_what_derived_plans_move_on_emulated_devices(name):
    assert_collectives(lowered(small(name), DERIVED, MESH), MESH, BUDGETS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_derived_plans_move_no_more_than_specs_by_hand(name):
    case = small(name)
    best = next(contestant for contestant in contestants(case, MESH) if contestant.startswith(BY_HAND))
    derived, by_hand = (
        by_axes(totals(collectives(lowered(case, who, MESH).compile().as_text(), MESH.sizes)))
        for who in (DERIVED, best)
    )
    assert derived.keys() == by_hand.keys()
    for axes, num_bytes in by_hand.items():
        assert derived[axes] <= 1.05 * num_bytes, axes


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra tpu)")
@pytest.mark.parametrize("name", ["decoder", "fused_gpt2", "flax_attention", "bare_experts"])
def test_tpu_programs_move_what_they_did(name):
    version = metadata.version("libtpu")
    if version not in GOLDEN:
        pytest.skip(
            f"collectives_golden.json is of libtpu {', '.join(GOLDEN)}, not of {version}; add it by python -m "
            "benchmarks.collectives --golden tests/benchmarks/collectives_golden.json"
        )
    spec = MeshSpec(fsdp=4, tensor=4)
    assert budget(moved(name, DERIVED, "v5e:4x4", spec)) == GOLDEN[version][name]


def test_rows_of_the_same_case_and_mesh_are_replaced(tmp_path):
    def row(case, derived):
        return {"case": case, "topology": "v5e:4x4", "mesh": "fsdp=4", "derived": derived}

    out = tmp_path / "rows.jsonl"
    keep(out, [row("one", 1), row("two", 2)])
    keep(out, [row("one", 3)])
    assert [json.loads(line)["derived"] for line in out.read_text().splitlines()] == [2, 3]
