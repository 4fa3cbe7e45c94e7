"""A planned step: its gradient is the mean over the microbatches that the training step cuts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.train.planned_step import PlannedStep, derive_step

BATCH = {"x": np.arange(24, dtype=np.float32).reshape(8, 3)}


def loss(params, batch):
    # Not linear in the examples' mean, so that microbatches show.
    return jnp.square(jnp.mean(batch["x"] @ params["w"]))


def planned(grad_accum):
    return PlannedStep(
        loss=loss,
        params={"w": jax.ShapeDtypeStruct((3,), jnp.float32)},
        batch={"x": jax.ShapeDtypeStruct((8, 3), jnp.float32)},
        optimizer=optax.sgd(0.1),
        num_tokens=8,
        grad_accum=grad_accum,
    )


def test_the_plan_is_of_a_microbatch():
    plan = derive_step(planned(4), MeshSpec(data=2))
    assert [leaf.shape for leaf in plan.leaves if leaf.role == "batch"] == [(2, 3)]
    assert planned(4).microbatch == {"x": jax.ShapeDtypeStruct((2, 3), jnp.float32)}


def test_a_batch_that_does_not_divide_is_refused_with_sizes_of_the_whole():
    with pytest.raises(UsageError, match=r"global_batch_size=8 must be divisible by data\*grad_accum=16; use 16"):
        derive_step(planned(4), MeshSpec(data=4))


def test_one_microbatch_is_the_gradient_of_the_loss():
    params = {"w": jnp.array([1.0, -0.5, 0.25])}
    value, gradient = planned(1).gradient(params, BATCH)
    expected_value, expected = jax.value_and_grad(loss)(params, BATCH)
    assert float(value) == float(expected_value)
    np.testing.assert_array_equal(gradient["w"], expected["w"])


def test_microbatches_take_every_other_example_and_their_gradients_are_averaged():
    params = {"w": jnp.array([1.0, -0.5, 0.25])}
    value, gradient = planned(2).gradient(params, BATCH)
    halves = [jax.value_and_grad(loss)(params, {"x": BATCH["x"][i::2]}) for i in range(2)]
    np.testing.assert_allclose(value, np.mean([half[0] for half in halves]), rtol=1e-6)
    np.testing.assert_allclose(gradient["w"], np.mean([half[1]["w"] for half in halves], axis=0), rtol=1e-6)
    assert float(value) != float(planned(1).gradient(params, BATCH)[0])
