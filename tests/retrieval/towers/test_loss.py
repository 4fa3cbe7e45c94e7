"""InfoNCE over a mesh against loops over single examples: loss and every gradient, and that the check can fail."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.sharding.plan import batch_sharded, replicated
from retrieval.towers.loss import NO_DOCUMENT, Contrastive, excluded_documents, info_nce

NUM_QUERIES, INPUT_DIM, NUM_DIMS = 16, 6, 5
MESHES = ("data=8", "data=2,fsdp=2,tensor=2")


def toy_batch(num_hard_negatives, seed=0):
    """Inputs of two linear towers; documents and known positives repeat often, so that masks matter."""
    rng = np.random.default_rng(seed)
    num_passages = 1 + num_hard_negatives
    document_ids = rng.integers(0, 12, (NUM_QUERIES, num_passages)).astype(np.int32)
    known = np.full((NUM_QUERIES, 3), NO_DOCUMENT, np.int32)
    known[:, 0] = document_ids[:, 0]
    known[::2, 1] = rng.integers(0, 12, NUM_QUERIES // 2)
    return {
        "queries": rng.normal(size=(NUM_QUERIES, INPUT_DIM)).astype(np.float32),
        "documents": rng.normal(size=(NUM_QUERIES, num_passages, INPUT_DIM)).astype(np.float32),
        "document_ids": document_ids,
        "known_positives": known,
    }


def toy_params(seed=1):
    rng = np.random.default_rng(seed)
    return {
        "query": rng.normal(size=(INPUT_DIM, NUM_DIMS)).astype(np.float32),
        "document": rng.normal(size=(INPUT_DIM, NUM_DIMS)).astype(np.float32),
        "log_temperature": np.float32(np.log(0.7)),
    }


def loss_under_test(params, batch, *, same, known, symmetric, shift_labels_by=0):
    """The loss of two linear towers; `shift_labels_by` plants a misalignment of the labels."""
    queries = jnp.einsum("bi,ie->be", batch["queries"], params["query"])
    documents = jnp.einsum("bpi,ie->bpe", batch["documents"], params["document"])
    if shift_labels_by:
        documents = jnp.roll(documents, shift_labels_by, axis=0)
    excluded = excluded_documents(
        batch["document_ids"], batch["known_positives"], mask_same_document=same, mask_known_positives=known
    )
    temperature = jnp.exp(params["log_temperature"])
    return info_nce(queries, documents, temperature, excluded, symmetric=symmetric)[0]


def plain_value_and_grad(params, batch, *, same, known, symmetric):
    """The same in float64: one query and one document at a time, the chain rule by hand."""
    ids, relevant = batch["document_ids"], batch["known_positives"]
    temperature = np.exp(np.float64(params["log_temperature"]))
    queries = batch["queries"].astype(np.float64) @ params["query"]
    documents = batch["documents"].astype(np.float64) @ params["document"]
    grad_queries, grad_documents, grad_log_temperature = np.zeros_like(queries), np.zeros_like(documents), 0.0

    def is_candidate(i, j, p):
        if (j, p) == (i, 0):
            return True
        return not (same and ids[j, p] == ids[i, 0]) and not (known and ids[j, p] in relevant[i])

    def softmax_loss(pairs, own, weight):
        """-log softmax at `own` among (query i, document j, p) pairs; adds its gradients."""
        nonlocal grad_log_temperature
        scores = np.array([queries[i] @ documents[j, p] / temperature for i, j, p in pairs])
        shares = np.exp(scores) / np.exp(scores).sum()
        for (i, j, p), score, share in zip(pairs, scores, shares, strict=True):
            slope = weight * (share - ((i, j, p) == own))
            grad_queries[i] += slope * documents[j, p] / temperature
            grad_documents[j, p] += slope * queries[i] / temperature
            grad_log_temperature -= slope * score
        return -weight * np.log(shares[pairs.index(own)])

    everything = list(itertools.product(range(NUM_QUERIES), range(documents.shape[1])))
    loss, weight = 0.0, (0.5 if symmetric else 1.0) / NUM_QUERIES
    for i in range(NUM_QUERIES):
        loss += softmax_loss([(i, j, p) for j, p in everything if is_candidate(i, j, p)], (i, i, 0), weight)
        if symmetric:
            seekers = [(j, i, 0) for j in range(NUM_QUERIES) if is_candidate(j, i, 0)]
            loss += softmax_loss(seekers, (i, i, 0), weight)
    gradients = {
        "query": np.einsum("bi,be->ie", batch["queries"], grad_queries),
        "document": np.einsum("bpi,bpe->ie", batch["documents"], grad_documents),
        "log_temperature": grad_log_temperature,
    }
    return loss, gradients


def on_mesh(function, mesh, params, batch):
    """Loss and gradients of `function` with the batch split over the mesh."""
    params = jax.device_put(params, replicated(mesh))
    batch = jax.device_put(batch, batch_sharded(mesh))
    return jax.jit(jax.value_and_grad(function))(params, batch)


def assert_same(got, expected):
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    for name, gradient in expected[1].items():
        scale = np.linalg.norm(gradient)
        assert scale > 1e-4, f"the reference gradient of {name} vanishes; it proves nothing"
        assert np.linalg.norm(np.asarray(got[1][name]) - np.asarray(gradient)) <= 1e-5 * scale, name


VARIANTS = [
    pytest.param(n, {"same": same, "known": known, "symmetric": symmetric}, id=f"{n}-{same:d}{known:d}{symmetric:d}")
    for n, (same, known), symmetric in [
        *itertools.product((0, 2), ((False, False), (True, True)), (False, True)),
        (2, (True, False), False),
        (2, (False, True), True),
    ]
]


@pytest.mark.parametrize("mesh_text", MESHES)
@pytest.mark.parametrize(("num_hard_negatives", "options"), VARIANTS)
def test_loss_and_gradients_equal_the_plain_reference(mesh_text, num_hard_negatives, options):
    batch, params = toy_batch(num_hard_negatives), toy_params()
    mesh = make_mesh(MeshSpec.parse(mesh_text))
    got = on_mesh(functools.partial(loss_under_test, **options), mesh, params, batch)
    assert_same(got, plain_value_and_grad(params, batch, **options))


@pytest.mark.parametrize("num_hard_negatives", [0, 2])
def test_labels_shifted_by_one_device_are_caught(num_hard_negatives):
    batch, params = toy_batch(num_hard_negatives), toy_params()
    options = {"same": False, "known": False, "symmetric": False}
    mesh = make_mesh(MeshSpec.parse("data=8"))
    shifted = functools.partial(loss_under_test, **options, shift_labels_by=NUM_QUERIES // mesh.size)
    got = on_mesh(shifted, mesh, params, batch)
    with pytest.raises(AssertionError):
        assert_same(got, plain_value_and_grad(params, batch, **options))


def test_masks_matter_in_the_toy_batch():
    """A query's own document is among its known positives, so masking those masks the same document too."""
    batch, params = toy_batch(2), toy_params()
    losses = {
        (same, known): plain_value_and_grad(params, batch, same=same, known=known, symmetric=False)[0]
        for same, known in itertools.product((False, True), repeat=2)
    }
    assert len({round(loss, 6) for loss in losses.values()}) == 3
    assert losses[True, True] == losses[False, True]


def test_every_device_sees_the_documents_of_all():
    """A device that saw only its own two pairs would have a loss near log 2 for equal scores, not log 16."""
    batch = toy_batch(0) | {"document_ids": np.arange(NUM_QUERIES, dtype=np.int32)[:, None]}
    zeros = toy_params() | {"query": np.zeros((INPUT_DIM, NUM_DIMS), np.float32)}
    for mesh_text in MESHES:
        loss, _ = on_mesh(
            functools.partial(loss_under_test, same=True, known=False, symmetric=True),
            make_mesh(MeshSpec.parse(mesh_text)),
            zeros,
            batch,
        )
        assert loss == pytest.approx(np.log(NUM_QUERIES), rel=1e-6)


def test_hits_are_queries_whose_own_document_scores_highest():
    queries = jnp.eye(3)[jnp.array([0, 2, 2])]
    documents = jnp.eye(3)[:, None, :]
    _, hits = info_nce(queries, documents, jnp.float32(1), jnp.zeros((3, 3, 1), bool), symmetric=False)
    assert hits.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(UsageError, match="temperature="):
        Contrastive(temperature=temperature)
