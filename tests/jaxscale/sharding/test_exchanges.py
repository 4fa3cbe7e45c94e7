"""Tokens sent to experts and back in parts where whole ones repeat or move more; rows looked up in parts; tables."""

import jax
import jax.numpy as jnp
import pytest

from jaxscale.mesh import MeshSpec
from jaxscale.sharding.derive import derive, plan_of
from jaxscale.sharding.exchanges import exchanges_of, returns_of
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.specs import spec_text
from jaxscale.sharding.splits import splits_of
from jaxscale.sharding.trace import trace_step
from jaxscale.sharding.work import flops_ratio, work_of
from launch.recipes import all_recipes

GROUP, WIDTH, HIDDEN, NUM_EXPERTS, NUM_PLACES = 16, 32, 64, 4, 8
PARAMS = {"up": (NUM_EXPERTS, WIDTH, HIDDEN), "down": (NUM_EXPERTS, HIDDEN, WIDTH), "router": (WIDTH, NUM_EXPERTS)}


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def routed(p, x, num_places=NUM_PLACES):
    """One expert for each token, sent there and back by a one-hot."""
    chosen = jax.nn.one_hot(jnp.argmax(x @ p["router"], axis=-1), NUM_EXPERTS)
    place = (jnp.cumsum(chosen, axis=1) - chosen).astype(jnp.int32)
    dispatch = jax.nn.one_hot(place, num_places) * chosen[..., None]
    read = jnp.einsum("bgec,bgd->ebcd", dispatch, x)
    made = jnp.einsum("ebcf,efd->ebcd", jax.nn.relu(jnp.einsum("ebcd,edf->ebcf", read, p["up"])), p["down"])
    return jnp.einsum("bgec,ebcd->bgd", dispatch, made)


@pytest.mark.parametrize(("max_flops_ratio", "in_parts"), [(1.05, True), (9.0, False)])
def test_tokens_are_sent_in_parts_where_whole_ones_repeat_more_work_than_the_limit(max_flops_ratio, in_parts):
    params = {name: floats(*shape) for name, shape in PARAMS.items()}
    mesh, limits = MeshSpec(tensor=4), Limits(small_leaf_bytes=0, max_flops_ratio=max_flops_ratio)
    graph = trace_step(routed, params, floats(8, GROUP, WIDTH))
    splits = {f: ("tensor",) for f, size in graph.sizes.items() if size == HIDDEN}
    exchanges = exchanges_of(graph, mesh, splits, limits)
    sent = {i for i, c in enumerate(graph.contractions) if c.left.is_data and c.right.is_data}
    assert set(exchanges) == (sent if in_parts else set())
    assert len(sent) == 2
    copies = {work.contraction: work.num_copies for work in work_of(graph, mesh, splits, exchanges)}
    assert {copies[i] for i in sent} == ({1} if in_parts else {4})


WIDE = 256


def wide():
    shapes = {"up": (NUM_EXPERTS, WIDE, HIDDEN), "down": (NUM_EXPERTS, HIDDEN, WIDE), "router": (WIDE, NUM_EXPERTS)}
    return {name: floats(*shape) for name, shape in shapes.items()}


def pins_of_wide(loss, mesh, params):
    """The pins of what has the wide dim: its shape, where it goes through, where it lives."""
    limits = Limits(small_leaf_bytes=0, max_flops_ratio=99)
    plan = derive(loss, params, floats(8, GROUP, WIDE), MeshSpec.parse(mesh), limits=limits)
    return [
        (made.shape, [spec_text(spec) for spec in made.through], spec_text(made.spec))
        for made in plan.activations
        if WIDE in made.shape
    ]


def test_what_experts_make_comes_back_in_parts_where_it_is_computed_again_and_outnumbers_what_it_is_combined_to():
    # Of every example 4 x 8 places of 256 against 16 tokens of 256 and twice 16 x 4 x 8 weights. What is read is whole.
    assert pins_of_wide(jax.checkpoint(routed), "data=2,tensor=4", wide()) == [
        ((NUM_EXPERTS, 8, NUM_PLACES, WIDE), [], "-, data, -, -"),
        ((NUM_EXPERTS, 8, NUM_PLACES, WIDE), ["-, data, -, -"], "-, data, -, tensor"),
        ((8, GROUP, WIDE), ["data, -, tensor"], "data, -, -"),
    ]


def kept(p, x):
    return jax.checkpoint(routed, policy=jax.checkpoint_policies.dots_saveable)(p, x)


def few(p, x):
    """Experts have as many places as there are tokens."""
    return jax.checkpoint(lambda p, x: routed(p, x, GROUP // NUM_EXPERTS))(p, x)


@pytest.mark.parametrize(
    ("loss", "mesh"),
    [
        (routed, "data=2,tensor=4"),
        (kept, "data=2,tensor=4"),
        (few, "data=2,tensor=4"),
        (jax.checkpoint(routed), "data=8"),
    ],
    ids=["not computed again", "may be kept", "no more than is combined", "no tensor"],
)
def test_what_experts_make_is_whole_elsewhere(loss, mesh):
    pins = pins_of_wide(loss, mesh, wide())
    assert pins
    assert all("tensor" not in spec for _, through, spec in pins for spec in (*through, spec))


def test_what_experts_make_on_other_devices_is_cut_there_and_comes_back_in_parts():
    assert pins_of_wide(jax.checkpoint(routed), "expert=4,tensor=2", wide())[1:] == [
        ((NUM_EXPERTS, 8, NUM_PLACES, WIDE), ["expert, -, -, -", "expert, -, -, tensor"], "-, expert, -, tensor"),
        ((8, GROUP, WIDE), ["expert, -, tensor"], "expert, -, -"),
    ]


@pytest.mark.parametrize(
    ("loss", "expert", "num_returns"),
    [
        # 4 x 8 places of 256 are M = 65,536 elements; with O + 2 W = 40,960 they come back in parts if more is saved.
        (jax.checkpoint(routed), 1, 1),  # M
        (routed, 1, 0),  # nothing
        (routed, 2, 1),  # 2 (1 - 1/2) M = M
        # 4 x 4 places are M = 32,768 elements; O + 2 W = 36,864.
        (few, 1, 0),  # M
        (few, 2, 1),  # M + 3 (1 - 1/2) M = 2.5 M
    ],
)
def test_parts_come_back_where_that_saves_more_than_it_costs(loss, expert, num_returns):
    graph = trace_step(loss, wide(), floats(8, GROUP, WIDE))
    hidden = {f: ("tensor",) for f, size in graph.sizes.items() if size == HIDDEN}
    assert len(returns_of(graph, MeshSpec(expert=expert, tensor=2), hidden)) == num_returns


def test_what_is_no_partial_sum_does_not_come_back_in_parts():
    graph = trace_step(jax.checkpoint(routed), wide(), floats(8, GROUP, WIDE))
    assert returns_of(graph, MeshSpec(tensor=2), {}) == {}


def test_mixtral_repeats_next_to_nothing_at_its_full_size():
    step = all_recipes()["mixtral_8x7b"]().planned_step()
    graph = trace_step(step.loss, step.params, step.batch)
    plan = plan_of(graph, mesh := MeshSpec(tensor=8), Limits())
    splits = splits_of(graph, mesh, [leaf.spec for leaf in plan.leaves])
    assert flops_ratio(work_of(graph, mesh, splits)) > 1.13
    assert flops_ratio(work_of(graph, mesh, splits, exchanges_of(graph, mesh, splits, plan.limits))) < 1.001


def looked_up(p, x):
    return p["table"][x] @ p["out"]


@pytest.mark.parametrize(
    ("mesh", "through"),
    [("data=2,fsdp=4", ((("data",), (), ("fsdp",)),)), ("fsdp=8", ()), ("data=8", ())],
)
def test_rows_kept_in_parts_are_looked_up_in_parts_where_fsdp_is_not_alone(mesh, through):
    params, batch = {"table": floats(24, 32), "out": floats(32, 16)}, jax.ShapeDtypeStruct((16, 8), jnp.int32)
    plan = derive(looked_up, params, batch, MeshSpec.parse(mesh), limits=Limits(small_leaf_bytes=0))
    (rows,) = [made for made in plan.activations if made.shape == (16, 8, 32)]
    assert rows.through == through


def test_a_small_table_is_split_where_a_matmul_reads_it_and_whole_where_rows_are_only_looked_up():
    def loss(p, x):
        scores = jax.nn.relu(p["table"][x] @ p["up"]) @ p["down"] @ p["scores"]
        return jnp.take_along_axis(scores, x[..., None], axis=-1)

    params = {"table": floats(64, 16), "up": floats(16, 32), "down": floats(32, 16), "scores": floats(16, 64)}
    plan = derive(loss, params, jax.ShapeDtypeStruct((16, 8), jnp.int32), MeshSpec(tensor=8))
    specs = {leaf.path: leaf.spec for leaf in plan.leaves}
    assert specs["scores"] == ((), ("tensor",))
    assert specs["table"] == ((), ())
