"""Collectives by kind and axis: TPU texts written by hand, CPU programs with counts known by hand, and budgets."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxscale.mesh import AXES, MeshSpec, describe_topology, make_mesh
from jaxscale.sharding.collectives import assert_collectives, collectives
from tests.jaxscale.sharding.hlo_texts import TPU_LOOP, TPU_SLICES

KIB = 1024


def summary(text, spec):
    return sorted((c.axes_text, c.kind, c.group_size, c.num_bytes, c.num_runs) for c in collectives(text, spec.sizes))


def test_a_tpu_program_with_a_loop():
    found = collectives(TPU_LOOP, MeshSpec(fsdp=4, tensor=4).sizes)
    assert summary(TPU_LOOP, MeshSpec(fsdp=4, tensor=4)) == [
        # The parts of an asynchronous gather are one, and gather 4 x 512 bytes.
        ("fsdp", "all_gather", 4, 2 * KIB, 5),
        ("fsdp", "reduce_scatter", 4, 4 * KIB, 5),
        # Two arrays in one operation.
        ("tensor", "all_reduce", 4, 8 * KIB, 5),
        # Its start and its end are one.
        ("tensor", "collective_permute", 4, 4 * KIB, 1),
    ]
    reduced = next(c for c in found if c.kind == "all_reduce")
    assert (reduced.source, reduced.op) == ("norm.py:7", "jit(step)/while/body/dot_general")
    assert reduced.total_bytes == 40 * KIB
    assert all(c.num_runs_known for c in found)


def test_a_loop_of_unknown_length_counts_once_and_says_so():
    text = TPU_LOOP.replace("direction=LT", "direction=NE")
    found = {c.kind: (c.num_runs, c.num_runs_known) for c in collectives(text, MeshSpec(fsdp=4, tensor=4).sizes)}
    assert found["all_reduce"] == (1, False)
    assert found["collective_permute"] == (1, True)
    budget = {
        "tensor": {"all_reduce": (1, 8 * KIB), "collective_permute": (1, None)},
        "fsdp": {"all_gather": (1, None), "reduce_scatter": (1, None)},
    }
    with pytest.raises(AssertionError, match="in a loop of unknown length"):
        assert_collectives(text, MeshSpec(fsdp=4, tensor=4), budget)


def test_between_slices():
    assert summary(TPU_SLICES, MeshSpec(slice=2, fsdp=2, tensor=2)) == [
        ("fsdp", "all_reduce", 2, 4 * KIB, 1),
        ("slice", "all_reduce", 2, 4 * KIB, 1),
    ]


def column_then_row(mesh):
    """Twice per layer of 3: x @ columns, @ rows: one sum over tensor of [8, 16] float32 in each."""
    sharded = {"columns": P(None, None, "tensor"), "rows": P(None, "tensor", None)}
    weights = {
        "columns": jax.ShapeDtypeStruct((3, 16, 32), jnp.float32, sharding=NamedSharding(mesh, sharded["columns"])),
        "rows": jax.ShapeDtypeStruct((3, 32, 16), jnp.float32, sharding=NamedSharding(mesh, sharded["rows"])),
    }
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=NamedSharding(mesh, P("data")))

    def function(x, weights):
        def layer(x, w):
            return jnp.tanh(jnp.tanh(x @ w["columns"]) @ w["rows"]), None

        return jax.lax.scan(layer, x, weights)[0]

    return jax.jit(function, out_shardings=x.sharding).lower(x, weights)


def test_a_scanned_pair_of_matmuls_on_cpu():
    mesh = make_mesh(MeshSpec(data=2, tensor=4))
    num_bytes = 8 // 2 * 16 * 4
    assert_collectives(column_then_row(mesh), mesh, {"tensor": {"all_reduce": (3, 3 * num_bytes)}})
    found = collectives(column_then_row(mesh).compile().as_text(), mesh.shape)
    assert {c.source.partition(":")[0] for c in found} == {"test_collectives.py"}


def test_what_is_not_as_expected_is_a_table():
    mesh = make_mesh(MeshSpec(data=2, tensor=4))
    expected = {"tensor": {"all_reduce": (2, 512)}, "data": {"all_gather": (1, None)}}
    with pytest.raises(AssertionError) as caught:
        assert_collectives(column_then_row(mesh), mesh, expected)
    lines = str(caught.value).splitlines()
    assert lines[0] == "the collectives are not those expected:"
    assert lines[1].split() == ["axes", "kind", "expected", "found", "made", "by"]
    assert lines[2].split()[:8] == ["data", "all_gather", "1,", "any", "bytes", "0,", "0", "bytes"]
    assert "2, 512 bytes" in lines[3]
    assert "3, 768 bytes" in lines[3]
    assert "3 x 256 bytes over 4 devices: test_collectives.py:" in lines[3]
    with pytest.raises(AssertionError, match=r"tensor +all_reduce +0, 0 bytes +3, 768 bytes"):
        assert_collectives(column_then_row(mesh), mesh, {})


def shard_mapped(mesh, function, spec):
    x = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=NamedSharding(mesh, P("fsdp", "tensor")))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=P("fsdp", "tensor"), out_specs=spec)).lower(x)


def test_every_kind_over_every_axis_on_a_mesh_in_another_order():
    # The ids of the devices are not their places in the mesh.
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    grid = np.array(jax.devices())[order].reshape(1, 1, 1, 4, 1, 1, 2)
    mesh = Mesh(grid, AXES)
    part = 2 * 2 * 4
    cases = [
        (lambda x: jax.lax.psum(x, "fsdp"), P(None, "tensor"), "fsdp", "all_reduce", part),
        (lambda x: jax.lax.psum(x, "tensor"), P("fsdp"), "tensor", "all_reduce", part),
        (lambda x: jax.lax.psum(x, ("fsdp", "tensor")), P(), "fsdp*tensor", "all_reduce", part),
        (lambda x: jax.lax.all_gather(x, "fsdp"), P(None, "fsdp", "tensor"), "fsdp", "all_gather", 4 * part),
        (lambda x: jax.lax.all_gather(x, "tensor"), P(None, "fsdp", "tensor"), "tensor", "all_gather", 2 * part),
        (lambda x: jax.lax.all_to_all(x, "tensor", 1, 0), P("fsdp", "tensor"), "tensor", "all_to_all", part),
        (
            lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)]),
            P("fsdp", "tensor"),
            "fsdp",
            "collective_permute",
            part,
        ),
    ]
    for function, spec, axes, kind, num_bytes in cases:
        assert_collectives(shard_mapped(mesh, function, spec), mesh, {axes: {kind: (1, num_bytes)}})


def test_a_function_with_its_arguments():
    mesh = make_mesh(MeshSpec(fsdp=8))
    x = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
    assert_collectives(lambda x: jnp.sum(x), mesh, {"fsdp": {"all_reduce": (1, 4)}}, x)
    assert_collectives(lambda x: x + 1, mesh, {}, x)


@pytest.mark.aot
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra tpu)")
def test_a_tpu_program_compiled_ahead_of_time():
    mesh = make_mesh(MeshSpec(data=2, tensor=4), describe_topology("v5e:2x4"))
    assert_collectives(column_then_row(mesh), mesh, {"tensor": {"all_reduce": (3, 3 * 4 * 16 * 4)}})
