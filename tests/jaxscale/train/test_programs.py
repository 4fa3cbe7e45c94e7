"""Compiled steps: one for each bucket, which says what it copies whole."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.train.programs import StepPrograms


def split(*spec):
    return NamedSharding(make_mesh(MeshSpec(data=2, fsdp=2, tensor=2)), P(*spec))


def programs(after):
    """A step that splits a value over data and tensor, and then otherwise."""

    def step(state, batch):
        first = jax.lax.with_sharding_constraint(jnp.sin(batch["x"]), split("data", "tensor"))
        other = jax.lax.with_sharding_constraint(jnp.cos(first), split(*after))
        return {"sum": state["sum"] + jnp.sum(other)}, {"loss": jnp.mean(other)}

    return StepPrograms(
        step, state_shardings={"sum": split()}, batch_shardings={"x": split()}, metrics_sharding=split()
    )


def batch(length):
    return {"x": jax.device_put(np.ones((16, length), np.float32), split())}


def state():
    return {"sum": jax.device_put(np.float32(0), split())}


def test_what_the_compiler_copies_whole_is_named_with_its_line():
    _, (copied,) = programs((None, ("data", "tensor", "fsdp"))).compile(state(), batch(24))
    assert copied.shape == (16, 24)
    assert copied.source.startswith("test_programs.py:")


def test_a_program_for_each_bucket_and_nothing_copied_where_there_is_a_way():
    made = programs(("tensor", "data"))
    for length in (24, 8):
        assert not made.has(batch(length))
        seconds, copied = made.compile(state(), batch(length))
        assert seconds > 0
        assert copied == ()
        assert made.has(batch(length))
        new, metrics = made.run(state(), batch(length))
        np.testing.assert_allclose([new["sum"] / (16 * length), metrics["loss"]], np.cos(np.sin(1.0)), rtol=1e-6)
