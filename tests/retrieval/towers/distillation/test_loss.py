"""The loss of a distillation against plain numpy, and weights that say nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import UsageError
from retrieval.encode import encode_texts
from retrieval.towers.distillation.loss import DistillationLoss, LossWeights, cosines, squared_errors
from retrieval.towers.in_batch import NO_DOCUMENT
from tests.retrieval.towers.distillation.small_distillation import MESH, small_encoder

RNG = np.random.default_rng(0)
TEXTS = ["dada fifi", "gogo", "nunu papa riri titi", "bibi"]


def batch_of(encoder, num_dims):
    ids = encoder.tokenize(TEXTS).ids
    tokens, mask = np.zeros((4, 24), np.int32), np.zeros((4, 24), bool)
    for row, text in enumerate(ids):
        tokens[row, : len(text)], mask[row, : len(text)] = text, True
    return {
        "query_tokens": tokens,
        "query_mask": mask,
        "teacher_vectors": RNG.normal(size=(4, num_dims)).astype(np.float32),
        "document_vectors": RNG.normal(size=(4, 1, num_dims)).astype(np.float32),
        "document_ids": np.array([[5], [6], [5], [8]], np.int32),
        # Document 8 is relevant to query 1 as well, and 5 to queries 0 and 2.
        "known_positives": np.array([[5, -1], [6, 8], [5, -1], [8, -1]], np.int32),
    }


def plain_loss(vectors, batch, weights, score):
    teacher = batch["teacher_vectors"].astype(np.float64)
    squares = (vectors - teacher) ** 2
    error = (squares.sum(axis=1) if weights.error_over_dims == "sum" else squares.mean(axis=1)).mean()
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(teacher, axis=1)
    cosine = ((vectors * teacher).sum(axis=1) / lengths).mean()
    queries = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if score == "cosine" else vectors
    losses, divergences = [], []
    documents = batch["document_vectors"][:, 0].astype(np.float64)
    taught = teacher / np.linalg.norm(teacher, axis=1, keepdims=True) if score == "cosine" else teacher
    for i, query in enumerate(queries):
        known = set(batch["known_positives"][i]) - {NO_DOCUMENT}
        others = [j for j in range(len(queries)) if j != i and batch["document_ids"][j, 0] not in known]
        scores = [query @ batch["document_vectors"][j, 0] / weights.temperature for j in [i, *others]]
        losses.append(np.log(np.exp(scores).sum()) - scores[0])
        ours, theirs = (np.exp(documents @ v / weights.temperature) for v in (query, taught[i]))
        ours, theirs = ours / ours.sum(), theirs / theirs.sum()
        divergences.append((theirs * np.log(theirs / ours)).sum())
    of_documents = weights.contrastive * np.mean(losses) + weights.ranking * np.mean(divergences)
    return weights.squared_error * error + weights.cosine * (1 - cosine) + of_documents


@pytest.mark.parametrize(
    ("score", "weights"),
    [
        ("cosine", LossWeights(squared_error=0.7, cosine=0.4, contrastive=0.3, temperature=0.9)),
        ("dot", LossWeights(squared_error=0.7, cosine=0.0, contrastive=0.3, temperature=5.0, error_over_dims="mean")),
        ("cosine", LossWeights(squared_error=0.0, cosine=2.0)),
        ("cosine", LossWeights(cosine=0.4, ranking=0.6, temperature=0.7)),
        ("dot", LossWeights(squared_error=0.0, cosine=0.0, ranking=0.6, contrastive=0.2, temperature=5.0)),
    ],
)
def test_the_loss_equals_plain_numpy(score, weights):
    encoder = small_encoder(normalize=False)
    batch = batch_of(encoder, encoder.config.num_dims)
    vectors = encode_texts(encoder, TEXTS, MESH).vectors.astype(np.float64)
    computation = DistillationLoss(student=encoder.config, weights=weights, score=score, compute_dtype="float32")
    loss, metrics = jax.jit(computation.loss)(encoder.params, batch, jax.random.key(0))
    assert float(loss) == pytest.approx(plain_loss(vectors, batch, weights, score), rel=1e-4)
    assert ("contrastive" in metrics) == bool(weights.contrastive)
    assert ("ranking" in metrics) == bool(weights.ranking)


def test_of_unit_vectors_the_squared_distance_is_two_times_one_minus_cosine():
    ours, theirs = (RNG.normal(size=(5, 8)).astype(np.float32) for _ in range(2))
    ours, theirs = (jnp.asarray(v / np.linalg.norm(v, axis=1, keepdims=True)) for v in (ours, theirs))
    errors = squared_errors(ours, theirs, over_dims="sum")
    np.testing.assert_allclose(errors, 2 * (1 - cosines(ours, theirs)), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"squared_error": 0.0, "cosine": 0.0}, "are all 0; nothing would be learned"),
        ({"cosine": -1.0}, "loss.cosine=-1.0 must be at least 0"),
        ({"squared_error": float("nan")}, "loss.squared_error=nan must be at least 0 and finite"),
        ({"ranking": -0.1}, "loss.ranking=-0.1 must be at least 0"),
        ({"temperature": 0.0}, "loss.temperature=0.0 must be above 0"),
    ],
)
def test_weights_that_say_nothing_are_refused(fields, said):
    with pytest.raises(UsageError) as refusal:
        LossWeights(**fields)
    assert said in str(refusal.value)
