"""Encoders: pooling, projection and normalisation against loops over single texts; padding changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.nn import functional
from jaxscale.nn.families import bert_config
from retrieval.towers.encoder import (
    EncoderConfig,
    TowerPair,
    apply_encoder,
    init_encoder,
    init_towers,
    normalize,
    pool,
)

TRANSFORMER = bert_config(
    num_layers=1, d_model=8, num_heads=2, d_ff=16, vocab_size=20, max_positions=12, dropout_rate=0.0
)


def config(**changes):
    fields = {
        "transformer": TRANSFORMER,
        "pooling": "mean",
        "normalize": True,
        "projection_dim": None,
        "prefix": "",
        "max_length": 12,
    }
    return EncoderConfig(**(fields | changes))


def batch(lengths=(3, 7, 1), width=7, seed=0):
    tokens = np.random.default_rng(seed).integers(1, 20, (len(lengths), width)).astype(np.int32)
    mask = np.arange(width)[None, :] < np.array(lengths)[:, None]
    return tokens, mask


@functools.cache
def encode(config):
    return jax.jit(functools.partial(apply_encoder, config, compute_dtype=jnp.float32))


@functools.cache
def hidden_of_text_alone(row):
    """The hidden states of one text of the batch, not padded; the transformer's weights are the same in every test."""
    tokens, mask = batch()
    alone = tokens[row : row + 1, : mask[row].sum()]
    params = init_encoder(config(), jax.random.key(0))["transformer"]
    apply = jax.jit(functools.partial(functional.apply, TRANSFORMER))
    return np.asarray(apply(params, alone, np.ones(alone.shape, bool))[0], np.float64)


def plain_vector(config, params, row):
    hidden = hidden_of_text_alone(row)
    vector = {"mean": hidden.mean(axis=0), "cls": hidden[0], "last": hidden[-1]}[config.pooling]
    if config.projection_dim is not None:
        vector = vector @ np.asarray(params["projection"]["kernel"], np.float64)
    return vector / np.linalg.norm(vector) if config.normalize else vector


@pytest.mark.parametrize(
    ("pooling", "scale_to_one", "projection_dim"), [("mean", True, None), ("cls", False, 5), ("last", True, 5)]
)
def test_vectors_equal_those_of_each_text_alone(pooling, scale_to_one, projection_dim):
    encoder = config(pooling=pooling, normalize=scale_to_one, projection_dim=projection_dim)
    params = init_encoder(encoder, jax.random.key(0))
    tokens, mask = batch()
    got = encode(encoder)(params, tokens, mask)
    assert got.dtype == jnp.float32
    assert got.shape == (len(tokens), encoder.num_dims)
    for row in range(len(tokens)):
        np.testing.assert_allclose(got[row], plain_vector(encoder, params, row), atol=2e-6)


def test_what_stands_in_the_padding_changes_nothing():
    encoder = config()
    params = init_encoder(encoder, jax.random.key(0))
    tokens, mask = batch()
    other = np.where(mask, tokens, 0).astype(np.int32)
    np.testing.assert_allclose(encode(encoder)(params, tokens, mask), encode(encoder)(params, other, mask), atol=1e-6)


def test_a_text_without_tokens_gives_zeros():
    hidden = jnp.full((1, 3, 2), jnp.inf)
    for pooling in ("mean", "cls", "last"):
        vector = normalize(pool(hidden, jnp.zeros((1, 3), bool), pooling))
        assert vector.tolist() == [[0.0, 0.0]]


def test_shared_towers_have_one_set_of_weights():
    shared = TowerPair(query=config(), document=config(), shared=True, score="cosine")
    apart = TowerPair(query=config(), document=config(), shared=False, score="cosine")
    weights = init_towers(apart, jax.random.key(0))
    assert list(init_towers(shared, jax.random.key(0))) == ["shared"]
    assert sorted(weights) == ["document", "query"]
    tables = [apart.params(weights, side)["transformer"]["embeddings"]["token"]["table"] for side in sorted(weights)]
    assert not np.array_equal(*tables)


@pytest.mark.parametrize(
    ("changes", "said"), [({"max_length": 13}, "max_positions=12"), ({"projection_dim": 0}, "projection_dim=0")]
)
def test_settings_out_of_range_are_refused(changes, said):
    with pytest.raises(UsageError, match=said):
        config(**changes)
