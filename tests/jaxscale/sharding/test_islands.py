"""Functions computed on each device's own parts: what the plan says of them, and that they are what the whole is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.sharding.apply import apply_plan
from jaxscale.sharding.collectives import collectives
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.on_parts import Parts, on_parts
from jaxscale.sharding.per_slice import part_plan
from jaxscale.sharding.plan import ShardingPlan

LIMITS = Limits(small_leaf_bytes=0)
B, D, F = 8, 16, 32
SPEC = MeshSpec(data=2, fsdp=2, tensor=2)


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Columns and rows, whose hidden dim may be in parts, as may be what is kept of each."""

    def __call__(self, parts: Parts, x, *weights):
        whole = []
        for operand, part in enumerate(weights, start=1):
            for dim, axes in parts.stored_over(operand):
                part = jax.lax.all_gather(part, axes, axis=dim, tiled=True)
            whole.append(part)
        made = jnp.tanh(x @ whole[0]) @ whole[1]
        return jax.lax.psum(made, parts.over("F")) if parts.over("F") else made


def loss(params, x):
    def layer(x, weights):
        return x + on_parts(Hidden(), "Bd,dF,Fd->Bd", x, weights["up"], weights["down"]), None

    x, _ = jax.lax.scan(jax.checkpoint(layer), x, params)
    return jnp.mean(jnp.square(x))


def arguments():
    rng = np.random.default_rng(0)
    shapes = {"up": (3, D, F), "down": (3, F, D)}
    params = {name: jnp.asarray(rng.normal(0, 0.2, shape), jnp.float32) for name, shape in shapes.items()}
    return params, jnp.asarray(rng.normal(size=(B, D)), jnp.float32)


def planned(spec):
    return derive(loss, *arguments(), spec, limits=LIMITS)


def test_the_plan_says_what_each_device_computes():
    plan = planned(SPEC)
    (island,) = plan.islands
    assert island.axes == {"B": ("data", "fsdp"), "F": ("tensor",)}
    assert island.stored == (((), ()), (("fsdp",), ()), ((), ("fsdp",)))
    assert "each device computes its own part of test_islands.py" in plan.render()
    assert "B over data*fsdp, F over tensor, what is kept over fsdp gathered" in plan.render()
    assert ShardingPlan.from_json(plan.to_json()) == plan
    assert not planned(MeshSpec()).islands
    # A plan from before there were any has no such field.
    assert "islands" not in typed_json.encode(dataclasses.replace(plan, islands=()))


@pytest.mark.parametrize("spec", [SPEC, MeshSpec(fsdp=8), MeshSpec(tensor=4)], ids=str)
def test_gradients_under_the_plan_equal_one_devices(spec):
    params, x = arguments()
    wanted, expected = jax.jit(jax.value_and_grad(loss))(params, x)
    plan, mesh = planned(spec), make_mesh(spec, jax.devices()[: spec.num_devices])
    at = plan.shardings(mesh, params)
    gradient = jax.value_and_grad(apply_plan(plan, loss, mesh, params, x))
    program = jax.jit(gradient, in_shardings=(at, plan.batch_sharding(mesh)), out_shardings=(None, at))
    compiled = program.lower(params, x).compile()
    value, got = compiled(jax.device_put(params, at), jax.device_put(x, plan.batch_sharding(mesh)))
    assert value == pytest.approx(float(wanted), rel=1e-6)
    for name, leaf in expected.items():
        assert np.linalg.norm(got[name] - leaf) <= 1e-5 * np.linalg.norm(leaf)
    if spec.tensor > 1:
        # Over tensor, what the rows make is added up forward, and the gradient of x backward; x is computed again.
        over_tensor = [c for c in collectives(compiled.as_text(), spec.sizes) if c.axes == ("tensor",)]
        assert {c.kind for c in over_tensor} == {"all_reduce"}


def test_the_part_of_one_slice_names_no_slice():
    spec = MeshSpec(slice=2, fsdp=2, tensor=2)
    (island,) = part_plan(planned(spec)).islands
    assert planned(spec).islands[0].axes["B"] == ("slice", "fsdp")
    assert island.axes["B"] == ("fsdp",)


def test_a_plan_of_another_function_is_refused():
    params, x = arguments()
    plan = dataclasses.replace(planned(SPEC), activations=())
    with pytest.raises(UsageError, match=r"no function of on_parts, where the plan has test_islands.py"):
        apply_plan(plan, lambda params, x: jnp.sum(jnp.tanh(x @ params["up"][0])), make_mesh(SPEC), params, x)


def test_letters_fit_the_arrays():
    params, x = arguments()
    with pytest.raises(UsageError, match="do not fit operands of"):
        on_parts(Hidden(), "Bd,F,Fd->Bd", x, params["up"][0], params["down"][0])


def test_it_is_the_body_where_nothing_is_planned():
    params, x = arguments()
    weights = params["up"][0], params["down"][0]

    def call(x):
        return on_parts(Hidden(), "Bd,dF,Fd->Bd", x, *weights)

    expected = np.tanh(x @ weights[0]) @ weights[1]
    for made in (call(x), jax.jit(call)(x), jax.vmap(call)(x[:, None])[:, 0]):
        np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)
    primal, tangent = jax.jvp(call, (x,), (x,))
    np.testing.assert_allclose(primal, expected, rtol=1e-4, atol=1e-5)
    assert tangent.shape == x.shape
