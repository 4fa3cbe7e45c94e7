"""Chunks: the memory of a compiled step grows by vectors and not by activations; what does not divide is refused."""

import jax
import pytest

from jaxscale.errors import UsageError
from jaxscale.nn.families import bert_config
from retrieval.towers.batches import planned_batch
from retrieval.towers.chunks import check_chunks
from retrieval.towers.loss import Contrastive
from retrieval.towers.pair_loss import PairLoss
from retrieval.towers.pairs import PairData
from retrieval.towers.start import Towers, planned_towers
from tests.configs.on_meshes import COMPILED_FAST

QUERY_LENGTH, DOCUMENT_LENGTH, NUM_DIMS, CHUNK = 16, 32, 8, 8
LENGTHS = (QUERY_LENGTH, DOCUMENT_LENGTH)


def temporary_bytes(num_pairs, cache_chunks):
    """Of the compiled value and gradient, on one device, arguments and results aside."""
    transformer = bert_config(
        num_layers=1, d_model=32, num_heads=2, d_ff=64, vocab_size=64, max_positions=32, dropout_rate=0.0
    )
    computation = PairLoss(
        towers=planned_towers(Towers(transformer=transformer, projection_dim=NUM_DIMS), LENGTHS),
        contrastive=Contrastive(cache_chunks=cache_chunks),
        compute_dtype="float32",
    )
    params = jax.eval_shape(lambda: computation.init_params(jax.random.key(0)))
    batch = planned_batch(
        PairData(query_buckets=(QUERY_LENGTH,), document_buckets=(DOCUMENT_LENGTH,)), global_batch_size=num_pairs
    )
    step = jax.jit(
        jax.value_and_grad(lambda params, batch: computation.loss(params, batch, jax.random.key(0))[0]),
        compiler_options=COMPILED_FAST,
    )
    return step.lower(params, batch).compile().memory_analysis().temp_size_in_bytes


def test_memory_grows_by_vectors_alone():
    """Of each pair more: its tokens and masks, in the order of chunks, its two vectors and their gradients."""
    of_tokens, of_vectors = (4 + 1) * (QUERY_LENGTH + DOCUMENT_LENGTH), 2 * 2 * 4 * NUM_DIMS
    few, many = 2, 16
    small, large = (temporary_bytes(num_chunks * CHUNK, num_chunks) for num_chunks in (few, many))
    assert 0 < large - small <= (many - few) * CHUNK * (of_tokens + of_vectors)
    assert temporary_bytes(many * CHUNK, 1) > 0.75 * many * large


@pytest.mark.parametrize(
    ("num_chunks", "num_ways", "said"),
    [
        (3, 1, "cache_chunks=3 does not divide 16 examples; use 1 or 2 or 4 or 8 or 16"),
        (4, 8, "cache_chunks=4 does not divide 16 examples on a mesh that splits examples 8 ways; use 1 or 2"),
        (32, 1, "cache_chunks=32 does not divide 16 examples"),
    ],
)
def test_chunks_that_are_not_equal_parts_of_every_devices_examples_are_refused(num_chunks, num_ways, said):
    with pytest.raises(UsageError) as refusal:
        check_chunks(16, num_chunks, num_ways)
    assert said in str(refusal.value)
