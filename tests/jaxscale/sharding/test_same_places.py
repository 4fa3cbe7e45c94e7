"""Plans for batches of other lengths: every array stays where it is, and what can't be is refused by its name."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.pins import Pin
from jaxscale.sharding.plan import ShardingPlan
from jaxscale.sharding.same_places import derive_like
from jaxscale.sharding.specs import Spec
from tests.jaxscale.sharding import transformers

LIMITS = Limits(small_leaf_bytes=0, max_flops_ratio=8)
LOSS = transformers.next_token_loss(transformers.DECODER)


def params() -> Any:
    return transformers.abstract(transformers.init(transformers.DECODER))


def batch(length: int) -> Any:
    dims = (transformers.NUM_EXAMPLES, length)
    return {"tokens": jax.ShapeDtypeStruct(dims, np.int32), "mask": jax.ShapeDtypeStruct(dims, np.bool_)}


def specs(plan: ShardingPlan, role: str) -> dict[str, Spec]:
    return {leaf.path: leaf.spec for leaf in plan.leaves if leaf.role == role}


def test_another_length_has_its_own_activations_and_nothing_else_of_its_own() -> None:
    mesh = MeshSpec(fsdp=2, tensor=4)
    plan = derive(LOSS, params(), batch(12), mesh, limits=LIMITS)
    like, own = derive_like(plan, LOSS, params(), batch(8)), derive(LOSS, params(), batch(8), mesh, limits=LIMITS)
    assert [leaf for leaf in like.leaves if leaf.role == "parameter"] == [
        leaf for leaf in plan.leaves if leaf.role == "parameter"
    ]
    assert specs(like, "batch") == specs(plan, "batch")
    assert like.activations == own.activations != plan.activations


def test_parameters_that_the_rules_would_place_elsewhere_stay() -> None:
    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.tanh(x @ params["up"]) @ params["down"])

    shapes = {
        "up": jax.ShapeDtypeStruct((64, 256), np.float32),
        "down": jax.ShapeDtypeStruct((256, 64), np.float32),
    }
    examples = [jax.ShapeDtypeStruct((length, 64), np.float32) for length in (16, 8)]
    mesh = MeshSpec(data=2, tensor=4)
    pins = [Pin(path="up", dim=0, axes=("tensor",)), Pin(path="down", dim=1, axes=("tensor",))]
    plan = derive(loss, shapes, examples[0], mesh, limits=LIMITS, pins=pins)
    like, own = derive_like(plan, loss, shapes, examples[1]), derive(loss, shapes, examples[1], mesh, limits=LIMITS)
    assert specs(like, "parameter") == specs(plan, "parameter") != specs(own, "parameter")
    assert like.activations != own.activations


@pytest.mark.parametrize(
    ("mesh", "length", "refused"),
    [
        (MeshSpec(sequence=2, tensor=4), 7, r"batch mask \(16, 7\): dim 1 \(7\) is split over sequence=2"),
        (MeshSpec(sequence=4, tensor=2), 6, r"dim 1 \(6\) is split over sequence=4 .* divides 6: 1, 2, 3, 6"),
    ],
)
def test_a_length_that_does_not_divide_is_refused(mesh: MeshSpec, length: int, refused: str) -> None:
    plan = derive(LOSS, params(), batch(12), mesh, limits=LIMITS)
    with pytest.raises(UsageError, match=refused):
        derive_like(plan, LOSS, params(), batch(length))


def test_a_leaf_that_was_not_planned_is_refused() -> None:
    def loss(with_more: Any, batch: Any) -> jax.Array:
        return LOSS({name: leaf for name, leaf in with_more.items() if name != "more"}, batch)

    plan = derive(LOSS, params(), batch(12), MeshSpec(fsdp=2), limits=LIMITS)
    more = {**params(), "more": jax.ShapeDtypeStruct((3,), np.float32)}
    with pytest.raises(UsageError, match=r"parameter more of shape \(3,\) was not planned"):
        derive_like(plan, loss, more, batch(12))
