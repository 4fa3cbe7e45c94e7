"""Functions of stored leaves: the same values and gradients, and on the mesh nothing moves to take the parts apart."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.sharding import rewrite
from jaxscale.sharding.collectives import assert_collectives, collectives
from jaxscale.sharding.layouts import Layouts, StoredLayout, restore_leaves, store_leaves
from jaxscale.sharding.stored import compute_stored, edits_of

WIDTH, HEADS, HEAD, EXAMPLES, LENGTH = 32, 8, 4, 4, 6
DOT = functools.partial(jnp.dot, precision="highest")
Params = dict[str, jax.Array]


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return make_mesh(MeshSpec(data=2, tensor=4))


def attend(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """[B, S, K, G, C] queries, [B, S, K, C] keys and values; returns [B, S, K*G*C]."""
    scores = jnp.einsum("bskgc,btkc->bkgst", queries, keys, precision="highest") / 2.0
    mixed = jnp.einsum("bkgst,btkc->bskgc", jax.nn.softmax(scores), values, precision="highest")
    return mixed.reshape(*mixed.shape[:2], -1)


def by_split(fused: jax.Array, kv_heads: int) -> jax.Array:
    """As GPT-2 does: three parts, then heads."""
    sizes = (HEADS * HEAD, kv_heads * HEAD)
    q, k, v = jnp.split(fused, (sizes[0], sizes[0] + sizes[1]), axis=-1)
    k, v = (x.reshape(*x.shape[:2], kv_heads, HEAD) for x in (k, v))
    return attend(q.reshape(*q.shape[:2], kv_heads, HEADS // kv_heads, HEAD), k, v)


def by_slices(fused: jax.Array, kv_heads: int) -> jax.Array:
    """A window of the width each."""
    k_start, v_start = HEADS * HEAD, (HEADS + kv_heads) * HEAD
    q, k, v = fused[..., :k_start], fused[:, :, k_start:v_start], fused[..., v_start:]
    k, v = (x.reshape(*x.shape[:2], kv_heads, HEAD) for x in (k, v))
    return attend(q.reshape(*q.shape[:2], kv_heads, HEADS // kv_heads, HEAD), k, v)


def by_heads(fused: jax.Array, kv_heads: int) -> jax.Array:
    """Heads first, then parts: a reshape between the matmul and the split."""
    heads = fused.reshape(*fused.shape[:2], HEADS + 2 * kv_heads, HEAD)
    q, k, v = jnp.split(heads, (HEADS, HEADS + kv_heads), axis=2)
    return attend(q.reshape(*q.shape[:2], kv_heads, HEADS // kv_heads, HEAD), k, v)


def by_index(fused: jax.Array, kv_heads: int) -> jax.Array:
    """A dim of three, then indexed."""
    three = fused.reshape(*fused.shape[:2], 3, HEADS, HEAD)
    return attend(three[:, :, 0][:, :, :, None], three[:, :, 1], three[:, :, 2])


def by_transpose(fused: jax.Array, kv_heads: int) -> jax.Array:
    """A dim of three, moved to the front and unpacked, examples and positions merged on the way."""
    three = fused.reshape(-1, 3, HEADS, HEAD).reshape(*fused.shape[:2], 3, HEADS, HEAD)
    q, k, v = jnp.transpose(three, (2, 0, 1, 3, 4))
    return attend(q[:, :, :, None], k, v)


CASES = [(by_split, 8), (by_split, 4), (by_slices, 8), (by_heads, 4), (by_index, 8), (by_transpose, 8)]


def attention_loss(take_apart: Callable[..., jax.Array], kv_heads: int) -> Callable[..., jax.Array]:
    """Two rematted layers by scan: fused projection with bias, attention, output projection, residual."""

    def layer(x: jax.Array, weights: Params) -> jax.Array:
        fused = DOT(x, weights["fused"]) + weights["bias"][None, None]
        return x + DOT(take_apart(fused, kv_heads), weights["out"])

    def loss(params: Params, x: jax.Array) -> jax.Array:
        y, _ = jax.lax.scan(lambda y, weights: (jax.checkpoint(layer)(y, weights), None), x, params)
        return jnp.mean(y**2)

    return loss


def attention_params(kv_heads: int) -> Params:
    generator = np.random.default_rng(0)
    size = (HEADS + 2 * kv_heads) * HEAD
    shapes = {"bias": (2, size), "fused": (2, WIDTH, size), "out": (2, HEADS * HEAD, WIDTH)}
    return {name: jnp.asarray(generator.normal(0, 0.2, shape), jnp.float32) for name, shape in shapes.items()}


def attention_layouts(kv_heads: int, num_shards: int = 4) -> Layouts:
    """Of the leaves `bias` and `fused`, which come first."""
    parts = tuple(n * HEAD for n in (HEADS, kv_heads, kv_heads))
    shapes = [leaf.shape for leaf in jax.tree.leaves(attention_params(kv_heads))[:2]]
    return {
        i: StoredLayout(logical_shape=shape, dim=len(shape) - 1, parts=parts, num_shards=num_shards)
        for i, shape in enumerate(shapes)
    }


def random_x() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(EXAMPLES, LENGTH, WIDTH)), jnp.float32)


def close(got: Any, expected: Any) -> None:
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(mine - theirs) <= 1e-5 * np.linalg.norm(theirs)


def compiled(function: Callable[..., Any], params: Params, mesh: Mesh) -> Any:
    specs = {"bias": P(None, "tensor"), "fused": P(None, None, "tensor"), "out": P(None, "tensor")}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    inputs = (shardings, NamedSharding(mesh, P("data")))
    step = jax.jit(
        jax.value_and_grad(function), in_shardings=inputs, out_shardings=(NamedSharding(mesh, P()), shardings)
    )
    return step.lower(params, random_x()).compile()


@pytest.mark.parametrize(("take_apart", "kv_heads"), CASES)
def test_a_fused_attention_moves_only_sums_and_computes_the_same(
    mesh: Mesh, take_apart: Callable[..., jax.Array], kv_heads: int
) -> None:
    loss, params, x = attention_loss(take_apart, kv_heads), attention_params(kv_heads), random_x()
    layouts = attention_layouts(kv_heads)
    stored_loss, stored_params = compute_stored(loss, layouts, params, x), store_leaves(params, layouts)
    program = compiled(stored_loss, stored_params, mesh)
    # Of each of two layers the output, forward, and the gradient of its input, backward; over `data` the gradients.
    tensor = {"all_reduce": (4, 4 * EXAMPLES // 2 * LENGTH * WIDTH * 4)}
    assert_collectives(program, mesh, {"tensor": tensor, "data": {"all_reduce": (None, None)}})
    placed = jax.device_put((stored_params, x), program.input_shardings[0])
    value, grads = program(*placed)
    close((value, restore_leaves(grads, layouts)), jax.jit(jax.value_and_grad(loss))(params, x))


def test_the_contiguous_cut_moves_activations(mesh: Mesh) -> None:
    text = compiled(attention_loss(by_split, 8), attention_params(8), mesh).as_text()
    moved = [c for c in collectives(text, dict(mesh.shape)) if c.kind in ("collective_permute", "all_gather")]
    sums = [c for c in collectives(text, dict(mesh.shape)) if c.kind == "all_reduce" and c.axes == ("tensor",)]
    assert sum(c.total_bytes for c in moved) > sum(c.total_bytes for c in sums)


def gated_loss(params: Params, x: jax.Array) -> jax.Array:
    gate, up = jnp.split(DOT(x, params["in"]), 2, axis=-1)
    return jnp.mean(DOT(jax.nn.silu(gate) * up, params["out"]) ** 2)


def gated_params(hidden: int = 16) -> Params:
    generator = np.random.default_rng(2)
    shapes = {"in": (WIDTH, 2 * hidden), "out": (hidden, WIDTH)}
    return {name: jnp.asarray(generator.normal(0, 0.2, shape), jnp.float32) for name, shape in shapes.items()}


def dealt(shape: tuple[int, ...], *parts: int, num_shards: int = 4) -> StoredLayout:
    return StoredLayout(logical_shape=shape, dim=len(shape) - 1, parts=parts, num_shards=num_shards)


def test_a_fused_gated_mlp_moves_only_sums_and_computes_the_same(mesh: Mesh) -> None:
    params, x, layouts = gated_params(), random_x(), {0: dealt((WIDTH, 32), 16, 16)}
    stored = compute_stored(gated_loss, layouts, params, x)
    shardings = {"in": NamedSharding(mesh, P(None, "tensor")), "out": NamedSharding(mesh, P("tensor"))}
    inputs = (shardings, NamedSharding(mesh, P("data")))
    step = jax.jit(jax.value_and_grad(stored), in_shardings=inputs, out_shardings=(None, shardings))
    program = step.lower(params, x).compile()
    tensor = {"all_reduce": (1, EXAMPLES // 2 * LENGTH * WIDTH * 4)}
    assert_collectives(program, mesh, {"tensor": tensor, "data": {"all_reduce": (None, None)}})
    value, grads = program(*jax.device_put((store_leaves(params, layouts), x), inputs))
    close((value, restore_leaves(grads, layouts)), jax.value_and_grad(gated_loss)(params, x))


def test_one_shard_or_one_part_changes_nothing() -> None:
    params, x = gated_params(), random_x()
    jaxpr = rewrite.trace(gated_loss, params, x).jaxpr
    assert edits_of(jaxpr, {0: dealt((WIDTH, 32), 16, 16, num_shards=1)}) == {}
    assert edits_of(jaxpr, {0: dealt((WIDTH, 32), 32)}) == {}
    assert len(edits_of(jaxpr, {0: dealt((WIDTH, 32), 16, 16)})) == 1


def test_pins_and_layouts_go_together(mesh: Mesh) -> None:
    params, x, layouts = gated_params(), random_x(), {0: dealt((WIDTH, 32), 16, 16)}
    jaxpr = rewrite.trace(gated_loss, params, x).jaxpr
    addresses = [a for a, e in rewrite.equations(jaxpr) if e.primitive.name == "split"]
    pins = {(a, i): NamedSharding(mesh, P("data", None, "tensor")) for a in addresses for i in range(2)}
    pinned = compute_stored(gated_loss, layouts, params, x, pins=pins)
    text = str(jax.make_jaxpr(pinned)(params, x))
    assert text.count("sharding_constraint") == 2
    close(jax.jit(pinned)(store_leaves(params, layouts), x), gated_loss(params, x))


def in_parts_of_the_program(params: Params, x: jax.Array) -> jax.Array:
    """Through a branch, a jit, a custom derivative that takes nothing apart, a norm, and sums over the stored dim."""
    hidden = jax.nn.relu(DOT(x, params["in"])) * 0.5 + jnp.ones((1, 1, 1), jnp.float32)
    hidden = hidden * jax.lax.rsqrt(jnp.mean(hidden**2, axis=-1, keepdims=True))

    def take(h: jax.Array) -> jax.Array:
        merged = h.reshape(-1, h.shape[-1])
        return (merged[:, :16] - merged[:, 16:]).reshape(*h.shape[:2], 16)

    half = jax.lax.cond(jnp.sum(x) > -1e9, lambda h: jax.jit(take)(h), lambda h: take(2.0 * h), hidden)
    return jnp.sum(DOT(half, params["out"]))


def test_stored_dims_are_followed_through_programs() -> None:
    params, x, layouts = gated_params(), random_x(), {0: dealt((WIDTH, 32), 16, 16)}
    stored = compute_stored(in_parts_of_the_program, layouts, params, x)
    value, grads = jax.jit(jax.value_and_grad(stored))(store_leaves(params, layouts), x)
    close((value, restore_leaves(grads, layouts)), jax.value_and_grad(in_parts_of_the_program)(params, x))


@jax.custom_vjp
def split_inside(h: jax.Array) -> jax.Array:
    return h[..., :16] * h[..., 16:]


split_inside.defvjp(lambda h: (split_inside(h), h), lambda h, g: (jnp.concatenate([g, g], -1),))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda h: h[..., :12],
            r"slice at test_stored.py:\d+, dim 2 of \(4, 6, 32\).* cut at .*0, 12.*not between parts",
        ),
        (lambda h: h[..., ::2], r"slice at .* by 2, not between parts"),
        (lambda h: jnp.cumsum(h, axis=-1), "the operation depends on the order"),
        (lambda h: h + jnp.arange(32, dtype=jnp.float32)[None, None], "meets values in the logical order"),
        (lambda h: DOT(h, jnp.ones((32, 2), jnp.float32) * jnp.arange(32.0)[:, None]), "dot_general .* logical order"),
        (lambda h: jnp.concatenate([h, h], axis=-1), "concatenate .* depends on the order"),
        (lambda h: h.reshape(*h.shape[:2], 4, 8), r"reshaped to \(4, 8\): no shard would have whole pieces"),
        (lambda h: jnp.sort(h, axis=-1), "the operation depends on the order"),
        (lambda h: split_inside(h), "inside a custom derivative, which is not changed"),
    ],
)
def test_what_depends_on_the_order_is_refused(use: Callable[[jax.Array], jax.Array], message: str) -> None:
    params, x = gated_params(), random_x()
    with pytest.raises(UsageError, match=message):
        compute_stored(lambda p, y: jnp.sum(use(DOT(y, p["in"]))), {0: dealt((WIDTH, 32), 16, 16)}, params, x)


def test_a_result_in_the_stored_order_and_a_layout_of_another_shape_are_refused() -> None:
    params, x = gated_params(), random_x()
    with pytest.raises(UsageError, match="result leaf 0 is in the stored order"):
        compute_stored(lambda p, y: DOT(y, p["in"]), {0: dealt((WIDTH, 32), 16, 16)}, params, x)
    with pytest.raises(UsageError, match=r"layout of leaf 1: logical_shape=\(32, 32\), but the leaf is \(16, 32\)"):
        compute_stored(gated_loss, {1: dealt((WIDTH, 32), 16, 16)}, params, x)
