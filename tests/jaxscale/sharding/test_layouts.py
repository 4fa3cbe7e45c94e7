"""Stored layouts are exact permutations, in numpy and jax, and shard t holds piece t of every part."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.sharding.layouts import StoredLayout, restore_leaves, store_leaves


@st.composite
def layouts(draw: st.DrawFn) -> StoredLayout:
    num_shards = draw(st.integers(1, 4))
    parts = tuple(n * num_shards for n in draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    before, after = (tuple(draw(st.lists(st.integers(1, 3), max_size=2))) for _ in range(2))
    return StoredLayout(
        logical_shape=(*before, sum(parts), *after), dim=len(before), parts=parts, num_shards=num_shards
    )


@given(layouts())
@settings(max_examples=60, deadline=None)
def test_storing_inverts_exactly_and_deals_the_pieces_out(layout: StoredLayout) -> None:
    logical = np.arange(np.prod(layout.logical_shape), dtype=np.int64).reshape(layout.logical_shape)
    stored = layout.to_stored(logical)
    np.testing.assert_array_equal(layout.to_logical(stored), logical)
    np.testing.assert_array_equal(layout.to_stored(layout.to_logical(logical)), logical)
    # By hand: piece t of every part, one after the other.
    shards = []
    for t in range(layout.num_shards):
        start = 0
        for part in layout.parts:
            piece = part // layout.num_shards
            shards.append(np.take(logical, range(start + t * piece, start + (t + 1) * piece), axis=layout.dim))
            start += part
    np.testing.assert_array_equal(stored, np.concatenate(shards, axis=layout.dim))


def test_jax_and_numpy_agree_and_dtypes_stay() -> None:
    layout = StoredLayout(logical_shape=(2, 12, 3), dim=1, parts=(8, 2, 2), num_shards=2)
    array = np.arange(72, dtype=np.int16).reshape(2, 12, 3)
    stored = jax.jit(layout.to_stored)(jnp.asarray(array))
    assert stored.dtype == jnp.int16
    assert isinstance(layout.to_stored(array), np.ndarray)
    np.testing.assert_array_equal(stored, layout.to_stored(array))
    np.testing.assert_array_equal(jax.jit(layout.to_logical)(stored), array)


def test_leaves_of_a_tree_are_stored_by_position() -> None:
    layout = StoredLayout(logical_shape=(4,), dim=0, parts=(2, 2), num_shards=2)
    tree = {"b": np.arange(4), "a": [np.arange(4), np.arange(3)]}
    stored = store_leaves(tree, {0: layout})
    np.testing.assert_array_equal(stored["a"][0], [0, 2, 1, 3])
    np.testing.assert_array_equal(stored["b"], tree["b"])
    jax.tree.map(np.testing.assert_array_equal, restore_leaves(stored, {0: layout}), tree)


def test_a_layout_is_data() -> None:
    layout = StoredLayout(logical_shape=(2, 12), dim=1, parts=(8, 2, 2), num_shards=2)
    assert typed_json.decode(StoredLayout, typed_json.encode(layout), "layout") == layout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 2}, "dim=2 must be one of the 2 dims"),
        ({"parts": (8, 2)}, "must be positive and add up to dim 1, which is 12"),
        ({"parts": (12, 0)}, "must be positive"),
        ({"num_shards": 4}, "a part of 2 in parts=.* must divide by num_shards=4"),
        ({"num_shards": 0}, "must divide by num_shards=0"),
    ],
)
def test_layouts_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    fields = {"logical_shape": (2, 12), "dim": 1, "parts": (8, 2, 2), "num_shards": 2, **changes}
    with pytest.raises(UsageError, match=message):
        StoredLayout(**fields)


def test_an_array_of_another_shape_is_refused() -> None:
    with pytest.raises(UsageError, match=r"got shape \(3, 4\), expected \(4,\)"):
        StoredLayout(logical_shape=(4,), dim=0, parts=(2, 2), num_shards=2).to_stored(np.zeros((3, 4)))


@pytest.mark.parametrize(
    "optimizer",
    [optax.adamw(0.1), optax.adafactor(0.1, min_dim_size_to_factor=4), optax.contrib.muon(0.1), optax.sgd(0.1, 0.9)],
)
def test_optimizers_do_not_see_the_order(optimizer: optax.GradientTransformation) -> None:
    layout = StoredLayout(logical_shape=(8, 24), dim=1, parts=(16, 4, 4), num_shards=4)
    generator = np.random.default_rng(0)
    params, *grads = (jnp.asarray(generator.normal(size=(8, 24)), jnp.float32) for _ in range(3))

    @jax.jit
    def train(params: jax.Array, grads: list[jax.Array]) -> jax.Array:
        state = optimizer.init({"w": params})
        for grad in grads:
            updates, state = optimizer.update({"w": grad}, state, {"w": params})
            params = params + updates["w"]
        return params

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        stored = train(layout.to_stored(params), [layout.to_stored(grad) for grad in grads])
        np.testing.assert_allclose(layout.to_logical(stored), train(params, grads), rtol=1e-4, atol=1e-5)
