"""Specs by the ends of paths, constraints by shapes."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from benchmarks.hand_written import HandWritten, leaf_shapes, state_shardings
from jaxscale.mesh import MeshSpec, make_mesh

HAND = HandWritten(
    name="a",
    why="b",
    parameters={"up/kernel": "fsdp, tensor", "bias": "tensor[1:2]"},
    activations={(8, 16): "fsdp, tensor"},
    factors={"tensor": (2, 2)},
)


def test_parameters_and_their_moments_by_the_end_of_the_path():
    floats = {"up": {"kernel": jnp.zeros((3, 4, 16))}, "sup": {"kernel": jnp.zeros((4, 16))}, "bias": jnp.zeros(16)}
    made = state_shardings({"params": floats, "moments": floats}, HAND, make_mesh(MeshSpec(fsdp=2, tensor=4)))
    assert made["params"] == made["moments"]
    assert made["params"]["up"]["kernel"].spec == P(None, "fsdp", ("tensor[1:2]", "tensor[2:4]"))
    # A name that only ends alike is another one.
    assert made["params"]["sup"]["kernel"].spec == P()
    assert made["params"]["bias"].spec == P("tensor[1:2]")


def test_constraints_by_shape_inside_scans_too():
    def loss(params, batch):
        def layer(x, kernel):
            return jnp.tanh(x @ kernel), None

        return jnp.sum(jax.lax.scan(layer, batch, params)[0] @ jnp.ones((16, 2)))

    params, batch = jnp.zeros((3, 16, 16)), jnp.zeros((8, 16))
    pins = HAND.pins(loss, params, batch, make_mesh(MeshSpec(fsdp=2, tensor=4)))
    # The matmul of the scanned body; the last one makes another shape.
    assert len(pins) == 1
    ((address, output), sharding) = pins.popitem()
    assert (len(address), output) == (2, 0)
    assert sharding.spec == P("fsdp", ("tensor[1:2]", "tensor[2:4]"))


def test_leaf_shapes():
    assert leaf_shapes({"a": [jnp.zeros((2, 3))]}) == {"a/0": (2, 3)}
