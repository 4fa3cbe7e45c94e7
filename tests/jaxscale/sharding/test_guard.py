"""What is refused before anything compiles, and with which words."""

import jax
import jax.numpy as jnp
import numpy as np
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


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_closed_over_constant_above_its_budget():
    table = np.ones((64, 8), np.float32)

    def loss(p, x):
        return jax.jit(lambda y: y @ table @ p["w"])(x)

    with pytest.raises(UsageError) as caught:
        derive(loss, {"w": floats(8, 64)}, floats(16, 64), MeshSpec(data=8), limits=Limits(constant_bytes=1000))
    assert "a closed-over constant float32 (64, 8), read at test_guard.py:" in str(caught.value)
    assert "2048 bytes would be copied to every device, above constant_bytes=1000" in str(caught.value)
    derive(loss, {"w": floats(8, 64)}, floats(16, 64), MeshSpec(data=8), limits=Limits(constant_bytes=2048))


def attention_with(num_heads):
    """Attention of heads of width 4 before an MLP that tensor can split, and its share of all FLOPs."""

    def loss(p, x):
        q, k, v = ((x @ p[name]).reshape(*x.shape[:2], num_heads, 4) for name in "qkv")
        weights = jax.nn.softmax(jnp.einsum("bshc,bthc->bhst", q, k))
        mixed = jnp.einsum("bhst,bthc->bshc", weights, v).reshape(*x.shape[:2], num_heads * 4) @ p["o"]
        return jax.nn.relu(mixed @ p["up"]) @ p["down"]

    width, length, hidden = num_heads * 4, 5, 64
    params = {name: floats(16, width) for name in "qkv"}
    params |= {"o": floats(width, 16), "up": floats(16, hidden), "down": floats(hidden, 16)}
    attention = 4 * 16 * width + 2 * length * width
    return loss, params, floats(8, length, 16), attention / (attention + 2 * 16 * hidden)


def test_work_done_more_than_once_is_counted_and_named():
    loss, params, x, share = attention_with(3)
    with pytest.raises(UsageError) as caught:
        derive(loss, params, x, MeshSpec(data=2, tensor=4))
    message = str(caught.value)
    assert f"compute {1 + 3 * share:.2f} times what is to be computed, above max_flops_ratio=1.05" in message
    assert "a matmul (8, 5, 16) x (16, 12) at test_guard.py:" in message
    assert "is computed 4 times (q: dim 1 (3 x 4) over tensor=4: 3 pieces can't be shared by 4" in message
    derive(loss, params, x, MeshSpec(data=2, tensor=4), limits=Limits(max_flops_ratio=1.001 + 3 * share))
    loss, params, x, _ = attention_with(4)
    derive(loss, params, x, MeshSpec(data=2, tensor=4), limits=Limits(max_flops_ratio=1))


def test_work_that_no_rule_considered_is_named_with_what_would_divide():
    def loss(p, x):
        made = jax.nn.relu(x @ p["up"]) @ p["down"]
        return (jax.nn.relu(jnp.sin(made) @ p["odd"]), made @ made.T)

    params = {"up": floats(16, 64), "down": floats(64, 16), "odd": floats(16, 17)}
    with pytest.raises(UsageError) as caught:
        derive(loss, params, floats(32, 16), MeshSpec(data=2, tensor=4))
    message = str(caught.value)
    assert "no rule considered odd (16, 17) over -, - further: no rule splits it on this mesh" in message
    assert "sizes that divide it: dim 0: 1, 2, 4, 8, 16; dim 1: 1, 17)" in message
    assert "(32, 16) x (16, 32)" in message
    assert "computed 4 times (no parameter takes part; it is split as its operands are)" in message


def test_a_limit_below_what_can_be_is_refused():
    with pytest.raises(UsageError, match=r"max_flops_ratio=0.5 must be at least 1"):
        Limits(max_flops_ratio=0.5)


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
