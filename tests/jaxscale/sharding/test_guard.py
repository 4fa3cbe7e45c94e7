"""What is refused before anything compiles, and with which words."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits


def mlp(p, x):
    return jax.nn.relu(x @ p["up"]) @ p["down"]


def planned(mesh, *, width=8, hidden=32, num_examples=16, limits=Limits(small_leaf_bytes=0)):  # noqa: B008
    params = {
        "up": jax.ShapeDtypeStruct((width, hidden), jnp.float32),
        "down": jax.ShapeDtypeStruct((hidden, width), jnp.float32),
    }
    x = jax.ShapeDtypeStruct((num_examples, width), jnp.float32)
    return derive(mlp, params, {"x": x}["x"], MeshSpec.parse(mesh), limits=limits)


def test_examples_that_do_not_divide():
    with pytest.raises(UsageError, match=r"30 examples must be divisible by data\*fsdp=8; use 24 or 32"):
        planned("data=4,fsdp=2", num_examples=30)
    with pytest.raises(UsageError, match=r"3 examples must be divisible by data=8; use 8"):
        planned("data=8", num_examples=3)


def test_an_axis_that_nothing_uses():
    with pytest.raises(UsageError, match=r"nothing is split over stage=2: .* use stage=1"):
        planned("stage=2,data=4")
    with pytest.raises(
        UsageError, match=r"nothing is split over tensor=3: .*32 pieces can't be shared by 3; sizes .* 1, 2, 4"
    ):
        planned("tensor=3,data=2")


def test_a_copy_above_the_budget():
    """14 x 34 divides by neither 3 way; 1,904 bytes are over a budget of 1,000."""
    with pytest.raises(UsageError) as caught:
        planned(
            "fsdp=3", width=14, hidden=34, num_examples=9, limits=Limits(small_leaf_bytes=0, replicated_leaf_bytes=1000)
        )
    message = str(caught.value)
    assert "parameter up (14, 34): 1904 bytes would be copied over fsdp, above replicated_leaf_bytes=1000" in message
    assert "dim 0 (14) over fsdp=3: 14 does not divide by 3; sizes that do: 1, 2, 7, 14" in message
    assert "Legal sizes: dim 0 (14): 1, 2, 7, 14; dim 1 (34): 1, 2, 17, 34" in message
    assert planned("fsdp=3", width=14, hidden=34, num_examples=9).leaves[0].spec == ((), ())


def test_plain_data_parallelism_may_copy():
    plan = planned("data=8", limits=Limits(small_leaf_bytes=0, replicated_leaf_bytes=0))
    assert plan.leaves[0].spec == ((), ())


@settings(deadline=None)
@given(
    mesh=st.tuples(*[st.sampled_from([1, 2, 3, 4])] * 3),
    width=st.integers(1, 24),
    hidden=st.integers(1, 24),
    num_examples=st.integers(1, 24),
)
def test_every_plan_that_passes_divides_and_every_other_is_refused_by_name(mesh, width, hidden, num_examples):
    spec = MeshSpec(data=mesh[0], fsdp=mesh[1], tensor=mesh[2])
    indivisible = num_examples % (mesh[0] * mesh[1]) != 0
    idle = mesh[2] > 1 and hidden % mesh[2] != 0
    if indivisible or idle:
        with pytest.raises(UsageError, match=f"mesh {spec} does not suit"):
            planned(str(spec), width=width, hidden=hidden, num_examples=num_examples)
        return
    plan = planned(str(spec), width=width, hidden=hidden, num_examples=num_examples)
    for leaf in plan.leaves:
        used = [axis for axes in leaf.spec for axis in axes]
        assert len(set(used)) == len(used)
        for size, axes in zip(leaf.shape, leaf.spec, strict=True):
            for axis in axes:
                assert size % spec.sizes[axis] == 0
