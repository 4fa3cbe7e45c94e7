"""What a slice does alone: its plan, its part of a batch, and a sum that crosses only where it is asked for."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.sharding import per_slice
from jaxscale.sharding.collectives import assert_collectives
from jaxscale.sharding.derive import derive

SPEC = MeshSpec(slice=2, fsdp=4)


def loss(params, batch):
    return jnp.mean(jnp.square(jnp.tanh(batch["x"] @ params["up"]) @ params["down"]))


def planned():
    shapes = {"up": jax.ShapeDtypeStruct((32, 64), jnp.float32), "down": jax.ShapeDtypeStruct((64, 32), jnp.float32)}
    return derive(loss, shapes, {"x": jax.ShapeDtypeStruct((16, 32), jnp.float32)}, SPEC)


def test_the_plan_of_a_part_names_no_slice_and_is_the_whole_plan_otherwise():
    whole, part = planned(), per_slice.part_plan(planned())
    assert part.mesh == whole.mesh
    named = {axis for leaf in (*part.leaves, *part.activations) for axes in leaf.spec for axis in axes}
    assert named == {"fsdp"}
    of_batch = next(leaf for leaf in part.leaves if leaf.role == "batch")
    assert (of_batch.shape, of_batch.spec) == ((8, 32), (("fsdp",), ()))
    for ours, theirs in zip(part.leaves, whole.leaves, strict=True):
        if ours.role == "parameter":
            assert ours == theirs


def test_only_what_is_added_up_crosses_between_slices():
    mesh, plan = make_mesh(SPEC), per_slice.part_plan(planned())
    x = np.arange(16 * 32, dtype=np.float32).reshape(16, 32)
    at = {"x": plan.shardings(mesh, {"x": jax.ShapeDtypeStruct((8, 32), jnp.float32)})["x"]}

    def squares(batch):
        return per_slice.for_each(lambda part: jnp.sum(jnp.square(part["x"]), axis=0))(per_slice.cut(batch, 2, at))

    of_whole = planned().shardings(mesh, {"x": jax.ShapeDtypeStruct(x.shape, jnp.float32)})
    apart = jax.jit(squares, in_shardings=(of_whole,))
    np.testing.assert_allclose(apart({"x": x}), [np.square(x[:8]).sum(0), np.square(x[8:]).sum(0)], rtol=1e-6)
    # Within a slice only: 32 floats over the 4 devices of fsdp.
    assert_collectives(apart, SPEC, {"fsdp": {"all_reduce": (1, 4 * 32)}}, {"x": x})

    added = jax.jit(lambda batch: per_slice.added_up(squares(batch)), in_shardings=(of_whole,))
    np.testing.assert_allclose(added({"x": x}), np.square(x).sum(0), rtol=1e-6)
    found = {"fsdp": {"all_reduce": (1, 4 * 32)}, "slice": {"all_reduce": (1, 4 * 32)}}
    assert_collectives(added, SPEC, found, {"x": x})
