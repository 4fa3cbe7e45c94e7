"""Fused dims are found by what the program does with them, whatever it calls them and however it cuts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxscale.errors import UsageError
from jaxscale.sharding.fused import FusedDim, fused_dims
from jaxscale.sharding.graph import Graph
from jaxscale.sharding.trace import trace_step

WIDTH, HEADS, HEAD = 32, 8, 4
Q, KV = HEADS * HEAD, 2 * HEAD


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def graph_of(function: Callable[..., Any], params: Any) -> Graph:
    return trace_step(lambda p, x: jnp.sum(function(p, x)), params, shape(8, 6, WIDTH))


def found(graph: Graph) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(graph.leaves[f.leaf].path, f.dim, f.parts) for f in fused_dims(graph)]


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    q, k, v = (x.reshape(*x.shape[:2], -1, HEAD) for x in (q, k, v))
    q = q.reshape(*q.shape[:2], k.shape[2], -1, HEAD)
    weights = jax.nn.softmax(jnp.einsum("bskgc,btkc->bkgst", q, k))
    mixed = jnp.einsum("bkgst,btkc->bskgc", weights, v)
    return mixed.reshape(*mixed.shape[:2], -1)


def project(p: Any, x: jax.Array) -> jax.Array:
    return jnp.dot(x, p["w"]) + p["b"][None, None]


def with_split(p: Any, x: jax.Array) -> jax.Array:
    return jnp.dot(attend(*jnp.split(project(p, x), (Q, Q + KV), axis=-1)), p["o"])


def with_slices(p: Any, x: jax.Array) -> jax.Array:
    y = project(p, x)
    return jnp.dot(attend(y[..., :Q], y[..., Q : Q + KV], y[..., Q + KV :]), p["o"])


def with_two_splits(p: Any, x: jax.Array) -> jax.Array:
    q, kv = jnp.split(project(p, x), (Q,), axis=-1)
    return jnp.dot(attend(q, *jnp.split(kv, 2, axis=-1)), p["o"])


def with_heads_first(p: Any, x: jax.Array) -> jax.Array:
    heads = project(p, x).reshape(*x.shape[:2], -1, HEAD)
    return jnp.dot(attend(*jnp.split(heads, (HEADS, HEADS + 2), axis=2)), p["o"])


GROUPED = {"b": shape(Q + 2 * KV), "o": shape(Q, WIDTH), "w": shape(WIDTH, Q + 2 * KV)}


@pytest.mark.parametrize("function", [with_split, with_slices, with_two_splits, with_heads_first])
def test_the_parts_of_a_fused_projection_and_its_bias_are_found(function: Callable[..., Any]) -> None:
    assert found(graph_of(function, GROUPED)) == [("b", 0, (Q, KV, KV)), ("w", 1, (Q, KV, KV))]


def test_parts_that_are_indexed_are_found() -> None:
    def function(p: Any, x: jax.Array) -> jax.Array:
        three = project(p, x).reshape(*x.shape[:2], 3, HEADS, HEAD)
        return jnp.dot(attend(three[:, :, 0], three[:, :, 1], three[:, :, 2]), p["o"])

    params = {"b": shape(3 * Q), "o": shape(Q, WIDTH), "w": shape(WIDTH, 3 * Q)}
    graph = graph_of(function, params)
    assert found(graph) == [("b", 0, (Q, Q, Q)), ("w", 1, (Q, Q, Q))]
    assert [[graph.sizes[f] for f in part] for part in fused_dims(graph)[0].factors] == [[HEADS, HEAD]] * 3


def test_stacked_layers_of_a_scan_are_found() -> None:
    def function(p: Any, x: jax.Array) -> jax.Array:
        def layer(y: jax.Array, one: Any) -> tuple[jax.Array, None]:
            gate, up = jnp.split(jnp.dot(y, one["w"]), 2, axis=-1)
            return y + jnp.dot(jax.nn.silu(gate) * up, one["o"]), None

        return jax.lax.scan(jax.checkpoint(layer), x, p)[0]

    assert found(graph_of(function, {"o": shape(3, 64, WIDTH), "w": shape(3, WIDTH, 128)})) == [("w", 2, (64, 64))]


def test_what_is_not_fused_is_not_found() -> None:
    def function(p: Any, x: jax.Array) -> jax.Array:
        # Heads outside and three inside: a contiguous cut by heads is right. Positions are cut, and not by a matmul.
        y = jnp.dot(x + p["positions"][None, :6], p["w"]).reshape(*x.shape[:2], HEADS, 3, HEAD)
        return jnp.dot(attend(y[..., 0, :], y[..., 1, :], y[..., 2, :]), p["o"])

    params = {"o": shape(Q, WIDTH), "positions": shape(10, WIDTH), "w": shape(WIDTH, 3 * Q)}
    assert found(graph_of(function, params)) == []


def test_the_layout_deals_the_parts_out() -> None:
    graph = graph_of(with_split, GROUPED)
    fused = fused_dims(graph)[1]
    assert fused.layout(graph, 2).parts == (Q, KV, KV)
    assert fused.layout(graph, 2).dim == 1
    with pytest.raises(UsageError, match=r"a part of 8 in parts=.* must divide by num_shards=16"):
        fused.layout(graph, 16)


def test_names_play_no_part() -> None:
    renamed = {"b": "z", "o": "y", "w": "x"}

    def function(p: Any, x: jax.Array) -> jax.Array:
        return with_split({old: p[new] for old, new in renamed.items()}, x)

    def pieces(fused: tuple[FusedDim, ...]) -> set[tuple[int, tuple[int, ...]]]:
        return {(f.dim, f.parts) for f in fused}

    plain, other = graph_of(with_split, GROUPED), graph_of(function, {renamed[k]: v for k, v in GROUPED.items()})
    assert pieces(fused_dims(plain)) == pieces(fused_dims(other))
