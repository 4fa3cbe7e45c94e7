"""The loss in groups: that of one plain pass, text by text, on one device and under a plan on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.mesh import MeshSpec
from jaxscale.nn import functional
from jaxscale.nn.families import bert_config, decoder_config
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits
from retrieval.reranking.cross_encoder import CrossEncoderConfig
from retrieval.reranking.loss import GroupLoss
from tests.configs.on_meshes import COMPILED_FAST, everything_in, far_leaves, gradient_on_mesh, on_one_device
from tests.jaxscale.random_params import random_like

NUM_QUERIES, NUM_DOCUMENTS, LENGTH, VOCABULARY = 8, 3, 10, 32
SIZES = {"num_layers": 1, "d_model": 16, "num_heads": 2, "d_ff": 32, "vocab_size": VOCABULARY, "max_positions": LENGTH}
BERT = CrossEncoderConfig(transformer=bert_config(**SIZES, dropout_rate=0.0), pooling="cls", max_length=LENGTH)


def batch_of(seed=0):
    """Joint rows of different lengths, with types where a second text begins."""
    draw = np.random.default_rng(seed)
    shape = (NUM_QUERIES, NUM_DOCUMENTS, LENGTH)
    lengths, starts = draw.integers(4, LENGTH + 1, (*shape[:2], 1)), draw.integers(1, 4, (*shape[:2], 1))
    places = np.arange(LENGTH)
    return {
        "tokens": draw.integers(0, VOCABULARY, shape, dtype=np.int32),
        "mask": places < lengths,
        "types": (places >= starts).astype(np.int32),
    }


def plain_loss(params, batch, dtype):
    """Text by text; the softmax written out."""

    def score(text):
        tokens, mask, types = (leaf[None] for leaf in text)
        hidden = functional.apply(
            BERT.transformer, params["transformer"], tokens, mask, token_types=types, compute_dtype=dtype
        )
        return jnp.sum(hidden[0, 0] * params["head"]["kernel"])

    texts = tuple(batch[name].reshape(-1, LENGTH) for name in ("tokens", "mask", "types"))
    scores = jnp.exp(jax.lax.map(score, texts)).reshape(NUM_QUERIES, NUM_DOCUMENTS)
    return -jnp.mean(jnp.log(scores[:, 0] / jnp.sum(scores, axis=1)))


def test_loss_and_gradients_are_those_of_one_plain_pass_on_every_mesh():
    with everything_in("float64"):
        computation = GroupLoss(config=BERT, compute_dtype="float64")
        params, batch = random_like(jax.eval_shape(computation.init_params, jax.random.key(0))), batch_of()
        params = jax.tree.map(np.float64, params)

        def loss(params, batch):
            return computation.loss(params, batch, jax.random.key(0))[0]

        step = jax.jit(jax.value_and_grad(lambda p: plain_loss(p, batch, jnp.float64)), compiler_options=COMPILED_FAST)
        expected_loss, expected = jax.device_get(step(params))
        spec = MeshSpec.parse("data=2,fsdp=2,tensor=2")
        plan = derive(loss, params, batch, spec, limits=Limits(small_leaf_bytes=0))
        found = [
            on_one_device(jax.value_and_grad(loss), params, batch),
            gradient_on_mesh(loss, params, batch, spec, plan=plan),
        ]
    for value, gradient in found:
        assert value == pytest.approx(float(expected_loss), rel=1e-10)
        assert far_leaves(gradient, expected, tolerance=1e-9) == {}


def test_a_loss_is_the_mean_of_its_parts_unless_dropout_draws():
    computation, key = GroupLoss(config=BERT, compute_dtype="float32"), jax.random.key(0)
    params, batch = random_like(jax.eval_shape(computation.init_params, key)), batch_of()
    parts = [{name: leaf[rows] for name, leaf in batch.items()} for rows in (slice(0, 3), slice(3, None))]
    losses = [on_one_device(lambda p, b: computation.loss(p, b, key)[0], params, part) for part in (batch, *parts)]
    weights = [float(computation.part_weight(part)) for part in parts]
    assert computation.averages_parts
    assert losses[0] == pytest.approx(np.average(losses[1:], weights=weights), rel=1e-5)
    dropping = CrossEncoderConfig(transformer=bert_config(**SIZES, dropout_rate=0.5), pooling="cls", max_length=LENGTH)
    noisy = GroupLoss(config=dropping, compute_dtype="float32")
    assert not noisy.averages_parts
    loss = jax.jit(lambda key: noisy.loss(params, batch, key)[0], compiler_options=COMPILED_FAST)
    drawn = {float(loss(jax.random.key(seed))) for seed in (0, 0, 1)}
    assert len(drawn) == 2


def test_a_network_without_a_table_of_types_reads_none():
    transformer = decoder_config(
        num_layers=1, d_model=16, num_heads=2, num_kv_heads=1, d_ff=32, vocab_size=VOCABULARY, max_positions=LENGTH
    )
    assert not CrossEncoderConfig(transformer=transformer, pooling="last", max_length=LENGTH).has_types
    assert BERT.has_types
