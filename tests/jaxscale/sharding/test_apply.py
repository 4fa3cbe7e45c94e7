"""Plans of fused projections, derived with no help and applied: what one device computes, and only sums move."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.sharding.apply import apply_plan
from jaxscale.sharding.collectives import Budget, assert_collectives
from jaxscale.sharding.derive import derive
from jaxscale.sharding.initialise import place
from jaxscale.sharding.layouts import restore_leaves
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.plan import PlannedLeaf, ShardingPlan
from jaxscale.sharding.specs import spec_text

WIDTH, HEADS, HEAD, HIDDEN, LAYERS = 32, 4, 8, 64, 2
EXAMPLES, LENGTH = 4, 6
ALL = Limits(small_leaf_bytes=0)
Params = dict[str, Any]
Loss = Callable[[Params, jax.Array], jax.Array]


def dot(x: jax.Array, weights: Params) -> jax.Array:
    return jnp.dot(x, weights["kernel"], precision="highest") + weights["bias"][None, None]


def norm(x: jax.Array) -> jax.Array:
    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)


def attend(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    q, k, v = (x.reshape(*x.shape[:2], -1, HEAD) for x in (queries, keys, values))
    scores = jnp.einsum("bshc,bthc->bhst", q, k, precision="highest") / HEAD**0.5
    scores = jnp.where(jnp.tril(jnp.ones((LENGTH, LENGTH), bool))[None, None], scores, -1e30)
    mixed = jnp.einsum("bhst,bthc->bshc", jax.nn.softmax(scores), v, precision="highest")
    return mixed.reshape(*mixed.shape[:2], -1)


def by_split(x: jax.Array, weights: Params) -> list[jax.Array]:
    """As GPT-2 does."""
    return jnp.split(dot(x, weights["attention"]), 3, axis=-1)


def by_index(x: jax.Array, weights: Params) -> list[jax.Array]:
    three = dot(x, weights["attention"]).reshape(*x.shape[:2], 3, HEADS, HEAD)
    return [three[:, :, i].reshape(*x.shape[:2], -1) for i in range(3)]


def separately(x: jax.Array, weights: Params) -> list[jax.Array]:
    return [dot(x, weights[name]) for name in ("query", "key", "value")]


def loss_of(project: Callable[..., list[jax.Array]]) -> Loss:
    """Blocks as those of GPT-2: norm, causal attention, norm, MLP; layers by a rematted scan."""

    def layer(x: jax.Array, weights: Params) -> tuple[jax.Array, None]:
        x = x + dot(attend(*project(norm(x), weights)), weights["out"])
        return x + dot(jax.nn.gelu(dot(norm(x), weights["up"])), weights["down"]), None

    def loss(params: Params, x: jax.Array) -> jax.Array:
        return jnp.mean(norm(jax.lax.scan(jax.checkpoint(layer), x, params)[0]) ** 3)

    return loss


FUSED = {"attention": (WIDTH, 3 * WIDTH)}
SEPARATE = dict.fromkeys(("query", "key", "value"), (WIDTH, WIDTH))
REST = {"out": (WIDTH, WIDTH), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}


def params_of(shapes: dict[str, tuple[int, int]]) -> Params:
    draw = np.random.default_rng(0).normal
    return {
        name: {
            "kernel": draw(0, 0.2, (LAYERS, *shape)).astype(np.float32),
            "bias": draw(0, 0.2, (LAYERS, shape[1])).astype(np.float32),
        }
        for name, shape in shapes.items()
    }


def examples() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(EXAMPLES, LENGTH, WIDTH)).astype(np.float32)


def compiled(plan: ShardingPlan, loss: Loss, params: Params) -> Any:
    mesh = make_mesh(plan.mesh)
    placed = plan.shardings(mesh, params)
    step = jax.jit(
        jax.value_and_grad(apply_plan(plan, loss, mesh, params, examples())),
        in_shardings=(placed, plan.batch_sharding(mesh)),
        out_shardings=(None, placed),
    )
    return step.lower(params, examples()).compile()


def by_path(plan: ShardingPlan) -> dict[str, PlannedLeaf]:
    return {leaf.path: leaf for leaf in plan.leaves}


def close(got: Any, expected: Any) -> None:
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        # The bias of the keys has no effect on a softmax: its gradient is rounding.
        assert np.linalg.norm(mine - theirs) <= 1e-5 * np.linalg.norm(theirs) + 1e-9


# Of each layer the outputs of two pairs, forward, the gradients of their inputs, backward, and what remat computes
# again of the first pair to get at the second.
NUM_SUMS = 5 * LAYERS
SUM_BYTES = EXAMPLES // 2 * LENGTH * WIDTH * 4


def budget(mesh: MeshSpec, num_bytes: int) -> Budget:
    """Sums over `tensor` and nothing else; over the batch's axis what gradients and gathered parameters take."""
    other = "data" if mesh.data > 1 else "fsdp"
    kinds = ("all_reduce",) if mesh.data > 1 else ("all_reduce", "all_gather", "reduce_scatter")
    return {"tensor": {"all_reduce": (NUM_SUMS, num_bytes)}, other: dict.fromkeys(kinds, (None, None))}


@pytest.mark.parametrize(
    ("mesh", "project"),
    [
        ("data=2,tensor=4", by_split),
        ("data=2,tensor=4", by_index),
        pytest.param("fsdp=2,tensor=4", by_split, marks=pytest.mark.slow),
    ],
)
def test_a_fused_block_computes_the_same_and_only_sums_move(mesh: str, project: Callable[..., list[jax.Array]]) -> None:
    loss, params, spec = loss_of(project), params_of(FUSED | REST), MeshSpec.parse(mesh)
    plan = derive(loss, params, examples(), spec, limits=ALL)
    program = compiled(plan, loss, params)
    assert_collectives(program, spec, budget(spec, NUM_SUMS * SUM_BYTES))
    layouts = plan.layouts(params)
    inputs = place(params, plan.shardings(make_mesh(spec), params), layouts)
    value, gradients = program(inputs, jax.device_put(examples(), plan.batch_sharding(make_mesh(spec))))
    close((value, restore_leaves(gradients, layouts)), jax.jit(jax.value_and_grad(loss))(params, examples()))


def test_separate_projections_take_as_many_sums() -> None:
    loss, params, spec = loss_of(separately), params_of(SEPARATE | REST), MeshSpec(data=2, tensor=4)
    plan = derive(loss, params, examples(), spec, limits=ALL)
    assert plan.layouts(params) == {}
    # XLA sums the gradients of what queries, keys and values are made from in one operation, but one by one.
    assert_collectives(compiled(plan, loss, params), spec, budget(spec, (NUM_SUMS + 2 * LAYERS) * SUM_BYTES))


def test_the_rest_is_planned_as_beside_separate_projections() -> None:
    for mesh in (MeshSpec(data=2, tensor=4), MeshSpec(fsdp=2, tensor=4)):
        fused = by_path(derive(loss_of(by_split), params_of(FUSED | REST), examples(), mesh, limits=ALL))
        separate = by_path(derive(loss_of(separately), params_of(SEPARATE | REST), examples(), mesh, limits=ALL))
        for part in ("kernel", "bias"):
            assert fused[f"attention/{part}"].spec == separate[f"query/{part}"].spec
            for name in REST:
                assert fused[f"{name}/{part}"] == separate[f"{name}/{part}"]


def test_optimizer_state_follows_the_layout_and_the_plan_says_it() -> None:
    loss, params = loss_of(by_split), params_of(FUSED | REST)
    state = {"params": params, "opt_state": jax.eval_shape(optax.adafactor(min_dim_size_to_factor=8).init, params)}
    optimizer = optax.adafactor(min_dim_size_to_factor=8)
    plan = derive(loss, params, examples(), MeshSpec(data=2, tensor=4), optimizer=optimizer, limits=ALL)
    assert ShardingPlan.from_json(plan.to_json()) == plan
    leaves = jax.tree_util.tree_leaves_with_path(state)
    found = {
        (jax.tree_util.keystr(leaves[i][0]), layout.logical_shape, layout.dim): layout.parts
        for i, layout in plan.layouts(state).items()
    }
    paths = sorted(path for path, _, _ in found)
    assert set(found.values()) == {(WIDTH,) * 3}
    assert {(shape, dim) for _, shape, dim in found} == {((2, 32, 96), 2), ((2, 96), 1)}
    # Of the statistics over rows and over columns only those over rows have the dim.
    assert sum("v_row" in path or "v_col" in path for path in paths) == 1
    assert sum(path.startswith("['params']") for path in paths) == 2
    assert len(paths) > 3
    assert "stored in 4 pieces of each part (32, 32, 32)" in plan.render()


def grouped(p: Params, x: jax.Array) -> jax.Array:
    """4 query heads on 2 of keys and values."""
    q, k, v = jnp.split(x @ p["fused"], (WIDTH, WIDTH + 2 * HEAD), axis=-1)
    q, k, v = q.reshape(*x.shape[:2], 2, 2, HEAD), k.reshape(*x.shape[:2], 2, HEAD), v.reshape(*x.shape[:2], 2, HEAD)
    mixed = jnp.einsum("bkgst,btkc->bskgc", jax.nn.softmax(jnp.einsum("bskgc,btkc->bkgst", q, k)), v)
    return jnp.sum(mixed.reshape(x.shape) @ p["out"])


def test_parts_that_do_not_divide_are_not_dealt_out() -> None:
    params = {"fused": np.zeros((WIDTH, WIDTH + 4 * HEAD), np.float32), "out": np.zeros((WIDTH, WIDTH), np.float32)}
    limits = Limits(small_leaf_bytes=0, max_flops_ratio=8)
    even = by_path(derive(grouped, params, examples(), MeshSpec(data=4, tensor=2), limits=limits))
    assert even["fused"].layout is not None
    assert (spec_text(even["fused"].spec), spec_text(even["out"].spec)) == ("-, tensor", "tensor, -")
    why = r"fused: dim 1 .* over tensor=4 by its parts \(32, 16, 16\): of part 1, 2 pieces can't be shared by 4"
    with pytest.raises(UsageError, match=why):
        derive(grouped, params, examples(), MeshSpec(data=2, tensor=4), limits=limits)


def test_a_loss_that_needs_the_logical_order_is_refused() -> None:
    def loss(params: Params, x: jax.Array) -> jax.Array:
        return loss_of(by_split)(params, x) + jnp.sum(jnp.cumsum(params["attention"]["bias"], axis=1))

    params, spec = params_of(FUSED | REST), MeshSpec(data=2, tensor=4)
    plan = derive(loss, params, examples(), spec, limits=ALL)
    with pytest.raises(UsageError, match="cumsum"):
        apply_plan(plan, loss, make_mesh(spec), params, examples())
