"""The hash of a state, and parameters placed without sharing memory with what was given."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.sharding.plan import replicated, row_sharded
from jaxscale.train.state import place_params, state_hash
from tests.jaxscale.train import tiny


def tree():
    return {"params": {"a": np.arange(16, dtype=np.float32), "b": np.ones((), np.int32)}}


def test_the_hash_is_of_values_not_of_places():
    mesh = make_mesh(MeshSpec(data=8))
    spread = jax.device_put(tree(), {"params": {"a": row_sharded(mesh), "b": replicated(mesh)}})
    assert state_hash(spread) == state_hash(tree())


def test_the_hash_is_the_documented_one():
    digest = hashlib.sha256(b"params/a float32 [16]\n" + np.arange(16, dtype="<f4").tobytes())
    digest.update(b"params/b int32 []\n\x01\x00\x00\x00")
    assert state_hash(tree()) == digest.hexdigest()


@pytest.mark.parametrize("change", ["value", "sign", "dtype", "shape", "name"])
def test_the_hash_sees_every_change(change):
    other = tree()
    params = other["params"]
    if change == "value":
        params["a"][3] = np.nextafter(params["a"][3], np.float32(9))
    elif change == "sign":
        params["a"][0] = -0.0
    elif change == "dtype":
        params["a"] = params["a"].view(np.int32)
    elif change == "shape":
        params["a"] = params["a"].reshape(4, 4)
    else:
        params["c"] = params.pop("a")
    assert state_hash(other) != state_hash(tree())


def test_given_parameters_survive_the_donation_of_the_state():
    mesh = make_mesh(MeshSpec(), jax.devices()[:1])
    job = tiny.job()
    given = {"w": np.ones((256, 256), np.float32)}
    optimizer = job.training.optimizer.transformation()
    shapes = jax.eval_shape(lambda: {"params": given, "opt_state": optimizer.init(given)})
    counters = {name: jax.ShapeDtypeStruct((), jnp.int32) for name in ("step", "num_skipped", "num_skipped_in_a_row")}
    shardings = jax.tree.map(lambda _: replicated(mesh), {**shapes, **counters})
    state = place_params(given, optimizer, shardings, {})
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), s), donate_argnums=0)
    jax.block_until_ready(overwrite(state))
    assert (given["w"] == 1).all()
