"""Draws the pictures of the guides, each from a plan derived as it is drawn: `python docs/guides/draw_pictures.py`.

A picture of a rule is of a computation small enough to be read here; what it shows is what the rule does.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxscale.mesh import MeshSpec
from jaxscale.observe.drawings import Drawing, draw_grid, draw_layout, draw_memory, draw_mesh, in_a_row
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.plan import ShardingPlan
from launch.explain_page import card_of

PICTURES = Path(__file__).parent / "pictures"
# Of models this small nothing is too small to be split, and work done twice costs nothing.
_LIMITS = Limits(small_leaf_bytes=0, max_flops_ratio=100.0)
_GIB = 2**30

Params = Mapping[str, Float[Array, "..."]]
# Leaves by path, and the captions they stand under.
Shown = Mapping[str, str]


def layers_stay_whole() -> Drawing:
    """4 layers that a scan goes through, on fsdp=2."""

    def loss(p: Params, x: Float[Array, "B D"]) -> Float[Array, ""]:
        x, _ = jax.lax.scan(lambda x, layer: (x @ layer, None), x, p["layers"])
        return x.sum()

    return _leaves(_planned(loss, {"layers": (4, 64, 64)}, (8, 64), "fsdp=2"), {"layers": "weights of 4 layers"})


def experts() -> Drawing:
    """8 experts that each example is routed to one of, on expert=4."""

    def loss(p: Params, x: Float[Array, "B S D"]) -> Float[Array, ""]:
        weight, chosen = (found[..., 0] for found in jax.lax.top_k(jax.nn.softmax(x @ p["router"]), 1))
        place = jnp.cumsum(jax.nn.one_hot(chosen, 8, dtype=jnp.int32), axis=1)
        slot = jnp.take_along_axis(place, chosen[..., None], axis=-1)[..., 0] - 1
        where = jax.nn.one_hot(chosen, 8)[..., None] * jax.nn.one_hot(slot, 16)[:, :, None, :]
        hidden = jax.nn.relu(jnp.einsum("becd,edf->becf", jnp.einsum("bsec,bsd->becd", where, x), p["up"]))
        made = jnp.einsum("becf,efd->becd", hidden, p["down"])
        return jnp.einsum("becd,bsec,bs->bsd", made, where, weight).sum()

    shapes = {"router": (64, 8), "up": (8, 64, 128), "down": (8, 128, 64)}
    plan = _planned(loss, shapes, (8, 16, 64), "expert=4")
    return _leaves(plan, {"router": "router", "up": "experts, up", "down": "experts, down"})


def columns_then_rows() -> Drawing:
    """An MLP on tensor=4."""
    plan = _planned(_mlp, {"up": (64, 256), "down": (256, 64)}, (8, 64), "tensor=4")
    return _leaves(plan, {"up": "up: columns", "down": "down: rows"}, between="then")


def fused_projection() -> Drawing:
    """Queries, keys and values of 4 heads by one matmul, on tensor=2."""

    def loss(p: Params, x: Float[Array, "B S D"]) -> Float[Array, ""]:
        made = [part.reshape(*x.shape[:2], 4, 16) for part in jnp.split(x @ p["qkv"], 3, axis=-1)]
        return (_attend(*made).reshape(x.shape) @ p["out"]).sum()

    plan = _planned(loss, {"qkv": (64, 192), "out": (64, 64)}, (2, 8, 64), "tensor=2")
    layout = next(leaf.layout for leaf in plan.leaves if leaf.path == "qkv")
    if layout is None:
        raise ValueError("the fused projection has no stored layout")
    order = draw_layout(layout.parts, layout.num_shards)
    return in_a_row([("q, k and v in one", _grid(plan, "qkv")), ("its columns", order)])


def vocabulary() -> Drawing:
    """Words looked up in a table and told apart at the end, on tensor=4."""

    def loss(p: Params, tokens: Int[Array, "B S"]) -> Float[Array, ""]:
        logits = p["table"][tokens] @ p["output"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).sum()

    shapes = {"table": (512, 64), "output": (64, 512)}
    plan = _planned(loss, shapes, (8, 16), "tensor=4", dtype=jnp.int32)
    return _leaves(plan, {"table": "embedding", "output": "output"})


def fully_shard() -> Drawing:
    """An MLP on fsdp=4, and beside tensor=2."""
    shapes = {"up": (64, 256)}

    def loss(p: Params, x: Float[Array, "B D"]) -> Float[Array, ""]:
        return (x @ p["up"]).sum()

    alone = _planned(loss, shapes, (8, 64), "fsdp=4")
    beside = _planned(_mlp, {**shapes, "down": (256, 64)}, (8, 64), "fsdp=4,tensor=2")
    return in_a_row([("on fsdp=4", _grid(alone, "up")), ("on fsdp=4,tensor=2", _grid(beside, "up"))])


def follow_the_parameter() -> Drawing:
    """A matrix with Adam's moments and Adafactor's factors, on fsdp=2,tensor=2."""
    shapes, mesh = {"up": (128, 256), "down": (256, 128)}, "fsdp=2,tensor=2"
    adam = _planned(_mlp, shapes, (8, 128), mesh, optimizer=optax.adam(1e-3))
    factored = _planned(_mlp, shapes, (8, 128), mesh, optimizer=optax.scale_by_factored_rms())
    return in_a_row(
        [
            ("parameter", _grid(adam, "up")),
            ("Adam's moment", _grid(adam, "0/mu/up")),
            ("Adafactor's rows", _grid(factored, "v_row/up")),
            ("and columns", _grid(factored, "v_col/up")),
        ]
    )


def split_the_batch() -> Drawing:
    """A batch on data=2,fsdp=2,tensor=2."""
    plan = _planned(_mlp, {"up": (64, 256), "down": (256, 64)}, (8, 64), "data=2,fsdp=2,tensor=2")
    return _leaves(plan, {"": "8 examples"})


def split_the_sequence() -> Drawing:
    """A batch of long examples on data=2,sequence=4."""
    plan = _planned(_mlp, {"up": (64, 256), "down": (256, 64)}, (4, 4096, 64), "data=2,sequence=4")
    return _leaves(plan, {"": "4 examples of 4096 positions"})


def grouped_heads() -> Drawing:
    """8 query heads that read 2 key-value heads, on tensor=4."""

    def loss(p: Params, x: Float[Array, "B S D"]) -> Float[Array, ""]:
        query = jnp.einsum("bsd,dhgc->bshgc", x, p["query"].reshape(64, 2, 4, 16))
        key, value = (jnp.einsum("bsd,dhc->bshc", x, p[name]) for name in ("key", "value"))
        scores = jax.nn.softmax(jnp.einsum("bshgc,bthc->bhgst", query, key))
        mixed = jnp.einsum("bhgst,bthc->bshgc", scores, value)
        return jnp.einsum("bshgc,hgcd->bsd", mixed, p["out"].reshape(2, 4, 16, 64)).sum()

    shapes = {"query": (64, 8, 16), "key": (64, 2, 16), "value": (64, 2, 16), "out": (8, 16, 64)}
    plan = _planned(loss, shapes, (2, 8, 64), "tensor=4")
    return _leaves(plan, {"query": "8 query heads", "key": "2 key heads", "out": "out"})


def mesh() -> Drawing:
    """8 devices."""
    return draw_mesh([("data", 2), ("fsdp", 2), ("tensor", 2)])


def memory() -> Drawing:
    """A device that is nearly full."""
    classes = {"parameters": 1.0, "optimizer": 2.0, "batch": 0.1, "gradients": 1.0, "kept": 6.5, "temporaries": 2.5}
    return draw_memory([(name, int(size * _GIB)) for name, size in classes.items()], int(15.75 * _GIB))


# One for each rule, under its name.
OF_RULES: tuple[Callable[[], Drawing], ...] = (
    layers_stay_whole,
    experts,
    columns_then_rows,
    fused_projection,
    vocabulary,
    fully_shard,
    follow_the_parameter,
    split_the_batch,
    split_the_sequence,
)
OTHERS: tuple[Callable[[], Drawing], ...] = (grouped_heads, mesh, memory)


def draw_all(folder: Path) -> None:
    """Draws every picture as a file of a folder, under the name of its function."""
    folder.mkdir(parents=True, exist_ok=True)
    for draw in (*OF_RULES, *OTHERS):
        (folder / f"{draw.__name__}.svg").write_text(draw().standalone(), encoding="utf-8")


def _mlp(p: Params, x: Float[Array, "... D"]) -> Float[Array, ""]:
    return (jax.nn.relu(x @ p["up"]) @ p["down"]).sum()


def _attend(
    query: Float[Array, "B S H C"], key: Float[Array, "B S H C"], value: Float[Array, "B S H C"]
) -> Float[Array, "B S H C"]:
    scores = jax.nn.softmax(jnp.einsum("bshc,bthc->bhst", query, key))
    return jnp.einsum("bhst,bthc->bshc", scores, value)


def _planned(
    loss: Callable[..., Any],
    shapes: Mapping[str, Sequence[int]],
    batch: Sequence[int],
    mesh: str,
    *,
    dtype: Any = jnp.float32,
    optimizer: optax.GradientTransformation | None = None,
) -> ShardingPlan:
    params = {name: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for name, shape in shapes.items()}
    example = jax.ShapeDtypeStruct(tuple(batch), dtype)
    return derive(loss, params, example, MeshSpec.parse(mesh), optimizer=optimizer, limits=_LIMITS)


def _grid(plan: ShardingPlan, path: str) -> Drawing:
    return draw_grid(card_of(next(leaf for leaf in plan.leaves if leaf.path == path), plan.mesh).dims)


def _leaves(plan: ShardingPlan, shown: Shown, between: str = "") -> Drawing:
    return in_a_row([(caption, _grid(plan, path)) for path, caption in shown.items()], between)


if __name__ == "__main__":
    draw_all(PICTURES)
