"""The encode driver against one text at a time, on one device and on eight, and how few programs it compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.nn.families import bert_config
from jaxscale.observe.compiles import CompileCounter
from retrieval.encode import TextEncoder, encode_texts
from retrieval.length_batches import widths_up_to
from retrieval.towers.encoder import Encoder, EncoderConfig, apply_encoder, init_encoder

WORDS = ["sea", "wind", "ship", "sail", "star", "night", "port", "rope", "deck", "wave", "crew", "map", "gold", "storm"]


@pytest.fixture(scope="module")
def encoder():
    random = np.random.default_rng(0)
    tokenizer = Tokenizer.train_wordpiece([" ".join(random.choice(WORDS, 30)) for _ in range(50)], 80)
    transformer = bert_config(
        num_layers=2, d_model=32, num_heads=4, d_ff=64, vocab_size=tokenizer.vocab_size, max_positions=64
    )
    config = EncoderConfig(
        transformer=transformer, pooling="mean", normalize=True, projection_dim=16, prefix="sea ", max_length=48
    )
    shapes = jax.eval_shape(lambda: init_encoder(config, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    return Encoder(config=config, params=params, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def texts():
    random = np.random.default_rng(1)
    return [" ".join(random.choice(WORDS, random.integers(1, 60))) for _ in range(70)] + [""]


@pytest.fixture(scope="module")
def expected(encoder, texts):
    """One text at a time, without padding but to one common width."""
    apply = jax.jit(
        lambda tokens, mask: apply_encoder(encoder.config, encoder.params, tokens, mask, compute_dtype=jnp.float32)
    )
    vectors = []
    for ids in encoder.tokenize(texts).ids:
        tokens = np.zeros((1, 48), np.int32)
        tokens[0, : len(ids)] = ids
        vectors.append(np.asarray(apply(tokens, np.arange(48)[None] < len(ids)))[0])
    return np.stack(vectors)


def mesh_of(num_devices):
    return make_mesh(MeshSpec(data=num_devices), jax.devices()[:num_devices])


@pytest.mark.parametrize("num_devices", [1, 8])
def test_equals_one_text_at_a_time_in_the_texts_order(encoder, texts, expected, num_devices):
    got = encode_texts(encoder, texts, mesh_of(num_devices), tokens_per_batch=128)
    np.testing.assert_allclose(got.vectors, expected, atol=1e-5)
    # Else a vector of all texts would pass.
    assert np.abs(np.diff(expected, axis=0)).max(axis=1).min() > 1e-3


def test_splits_rows_over_the_axes_of_any_mesh(encoder, texts, expected):
    mesh = make_mesh(MeshSpec.parse("data=2,fsdp=2,tensor=2"))
    np.testing.assert_allclose(encode_texts(encoder, texts, mesh).vectors, expected, atol=1e-5)


def test_bfloat16_is_near(encoder, texts, expected):
    got = encode_texts(encoder, texts, mesh_of(1), compute_dtype="bfloat16").vectors
    assert (got != expected).any()
    assert (got * expected).sum(axis=1).min() > 0.999


def test_counts_truncated_texts(encoder, texts):
    num_long = sum(1 + len(text.split()) + 2 > 48 for text in texts)
    assert encode_texts(encoder, texts, mesh_of(1)).num_truncated >= num_long > 0


def test_no_texts_give_no_vectors(encoder):
    got = encode_texts(encoder, [], mesh_of(1))
    assert (got.vectors.shape, got.num_truncated) == ((0, 16), 0)


def test_a_second_call_compiles_nothing(encoder, texts):
    text_encoder = TextEncoder(encoder, mesh_of(1), tokens_per_batch=256)
    first = text_encoder.encode(texts)
    with CompileCounter() as counter:
        again = text_encoder.encode(texts)
    assert counter.num_programs == 0
    np.testing.assert_array_equal(first.vectors, again.vectors)


def test_widths_end_at_the_limit():
    assert widths_up_to(100) == (16, 32, 48, 64, 80, 96, 100)
    assert widths_up_to(300)[-4:] == (240, 256, 288, 300)
    assert widths_up_to(10) == (10,)


@pytest.mark.parametrize("name", ["tokens_per_batch", "num_in_flight"])
def test_refuses_nothing_to_work_with(encoder, name):
    with pytest.raises(UsageError, match=f"{name}=0"):
        encode_texts(encoder, ["sea"], mesh_of(1), **{name: 0})
