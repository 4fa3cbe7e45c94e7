"""InfoNCE over a mesh, gathered and round the ring, against loops over single examples: loss and every gradient, and
that the check can fail.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec, make_mesh, spec_of
from jaxscale.sharding.collectives import collectives
from jaxscale.sharding.plan import batch_sharded, replicated
from retrieval.towers.in_batch import NO_DOCUMENT, Relations, parts_of
from retrieval.towers.loss import Contrastive, info_nce
from retrieval.towers.negatives_traffic import NegativesTraffic
from retrieval.towers.ring import Ring
from tests.configs.on_meshes import COMPILED_FAST

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
        "document_groups": (document_ids // 2).astype(np.int32),
    }


def toy_params(seed=1):
    rng = np.random.default_rng(seed)
    return {
        "query": rng.normal(size=(INPUT_DIM, NUM_DIMS)).astype(np.float32),
        "document": rng.normal(size=(INPUT_DIM, NUM_DIMS)).astype(np.float32),
        "log_temperature": np.float32(np.log(0.7)),
    }


def loss_under_test(params, batch, *, mesh, shift_labels_by=0, groups=False, **options):
    """The loss of two linear towers; `shift_labels_by` plants a misalignment of the labels."""
    queries = jnp.einsum("bi,ie->be", batch["queries"], params["query"])
    documents = jnp.einsum("bpi,ie->bpe", batch["documents"], params["document"])
    if shift_labels_by:
        documents = jnp.roll(documents, shift_labels_by, axis=0)
    contrastive = Contrastive(**options)
    asked, offered = parts_of({name: leaf for name, leaf in batch.items() if groups or name != "document_groups"})
    temperature = jnp.exp(params["log_temperature"])
    if contrastive.negatives == "ring":
        ring = Ring(mesh=spec_of(mesh), contrastive=contrastive)
        return ring.info_nce(queries, documents, temperature, asked, offered)
    related = contrastive.relations(asked, offered)
    return info_nce(queries, documents, temperature, related, symmetric=contrastive.symmetric)


def plain_value_and_grad(
    params,
    batch,
    *,
    mask_same_document=True,
    mask_known_positives=True,
    symmetric=False,
    positives="own",
    groups=False,
    negatives=None,
):
    """The same in float64: one query and one document at a time, the chain rule by hand."""
    ids, relevant, group = batch["document_ids"], batch["known_positives"], batch["document_groups"]
    temperature = np.exp(np.float64(params["log_temperature"]))
    queries = batch["queries"].astype(np.float64) @ params["query"]
    documents = batch["documents"].astype(np.float64) @ params["document"]
    grad_queries, grad_documents, grad_log_temperature = np.zeros_like(queries), np.zeros_like(documents), 0.0

    def is_positive(i, j, p):
        return (j, p) == (i, 0) or (positives == "all" and ids[j, p] in relevant[i])

    def is_candidate(i, j, p):
        if is_positive(i, j, p):
            return True
        return not (
            (mask_same_document and ids[j, p] == ids[i, 0])
            or (mask_known_positives and ids[j, p] in relevant[i])
            or (groups and group[j, p] == group[i, 0])
        )

    def softmax_loss(pairs, weight):
        """The mean of -log softmax at the positives among (query i, document j, p) pairs; adds its gradients."""
        found = [pair for pair in pairs if is_positive(*pair)]
        return sum(softmax_loss_at(pairs, pair, weight / len(found)) for pair in found)

    def softmax_loss_at(pairs, own, weight):
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
        loss += softmax_loss([(i, j, p) for j, p in everything if is_candidate(i, j, p)], weight)
        if symmetric:
            seekers = [(j, i, 0) for j in range(NUM_QUERIES) if is_candidate(j, i, 0)]
            loss += softmax_loss(seekers, weight)
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
    step = jax.jit(jax.value_and_grad(function, has_aux=True), compiler_options=COMPILED_FAST)
    (loss, _), gradients = step(params, batch)
    return loss, gradients


def assert_same(got, expected):
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    for name, gradient in expected[1].items():
        scale = np.linalg.norm(gradient)
        assert scale > 1e-4, f"the reference gradient of {name} vanishes; it proves nothing"
        assert np.linalg.norm(np.asarray(got[1][name]) - np.asarray(gradient)) <= 1e-5 * scale, name


def options_of(same, known, symmetric, **more):
    return {"mask_same_document": same, "mask_known_positives": known, "symmetric": symmetric, **more}


VARIANTS = [
    *(
        (n, options_of(*masks, symmetric))
        for n in (0, 2)
        for masks in ((False, False), (True, True))
        for symmetric in (False, True)
    ),
    (2, options_of(True, False, False)),
    (2, options_of(False, True, True)),
    (0, options_of(True, True, True, positives="all")),
    (2, options_of(True, True, False, positives="all", groups=True)),
    (2, options_of(True, True, True, groups=True)),
]


def variant_name(options):
    return "-".join(name if value is True else str(value) for name, value in options.items() if value) or "plain"


@pytest.mark.parametrize("negatives", ["gather", "ring"])
@pytest.mark.parametrize(
    ("mesh_text", "num_hard_negatives", "options"),
    [
        pytest.param(mesh, n, o, id=f"{mesh}-{n}-{variant_name(o)}")
        for mesh, variants in zip(MESHES, (VARIANTS, VARIANTS[-2:]), strict=True)
        for n, o in variants
    ],
)
def test_loss_and_gradients_equal_the_plain_reference(negatives, mesh_text, num_hard_negatives, options):
    batch, params = toy_batch(num_hard_negatives), toy_params()
    mesh = make_mesh(MeshSpec.parse(mesh_text))
    function = functools.partial(loss_under_test, mesh=mesh, negatives=negatives, **options)
    assert_same(on_mesh(function, mesh, params, batch), plain_value_and_grad(params, batch, **options))


@pytest.mark.parametrize("negatives", ["gather", "ring"])
def test_labels_shifted_by_one_device_are_caught(negatives):
    batch, params = toy_batch(2), toy_params()
    options = options_of(False, False, False)
    mesh = make_mesh(MeshSpec.parse("data=8"))
    shift = NUM_QUERIES // mesh.size
    shifted = functools.partial(loss_under_test, mesh=mesh, negatives=negatives, **options, shift_labels_by=shift)
    got = on_mesh(shifted, mesh, params, batch)
    with pytest.raises(AssertionError):
        assert_same(got, plain_value_and_grad(params, batch, **options))


def test_a_ring_sends_and_holds_what_the_closed_form_says():
    """Every permute of the compiled program, forward and backward."""
    mesh, batch, params = make_mesh(MeshSpec.parse("data=4,fsdp=2")), toy_batch(2), toy_params()
    contrastive = Contrastive(negatives="ring", symmetric=True)
    function = functools.partial(loss_under_test, mesh=mesh, negatives="ring", symmetric=True, groups=True)
    traffic = NegativesTraffic(
        contrastive=contrastive,
        num_queries=NUM_QUERIES,
        num_documents=3,
        num_dims=NUM_DIMS,
        num_devices=8,
        num_known=batch["known_positives"].shape[1],
        groups=True,
    )
    step = jax.jit(jax.value_and_grad(function, has_aux=True))
    placed = jax.device_put(params, replicated(mesh)), jax.device_put(batch, batch_sharded(mesh))
    text = step.lower(*placed).compile().as_text()
    found = collectives(text, dict(mesh.shape))
    sent = sum(one.total_bytes for one in found if one.kind == "collective_permute")
    assert sent == traffic.ring_sent_bytes
    assert traffic.score_bytes("ring") == 4 * (NUM_QUERIES // 8) ** 2 * 3
    assert not any(one.kind == "all_gather" for one in found)


def test_masks_matter_in_the_toy_batch():
    """A query's own document is among its known positives, so masking those masks the same document too."""
    batch, params = toy_batch(2), toy_params()
    losses = {
        (same, known): plain_value_and_grad(params, batch, **options_of(same, known, False))[0]
        for same, known in itertools.product((False, True), repeat=2)
    }
    assert len({round(loss, 6) for loss in losses.values()}) == 3
    assert losses[True, True] == losses[False, True]


def test_every_device_sees_the_documents_of_all():
    """A device that saw only its own two pairs would have a loss near log 2 for equal scores, not log 16."""
    batch = toy_batch(0) | {"document_ids": np.arange(NUM_QUERIES, dtype=np.int32)[:, None]}
    zeros = toy_params() | {"query": np.zeros((INPUT_DIM, NUM_DIMS), np.float32)}
    for mesh in map(make_mesh, map(MeshSpec.parse, MESHES)):
        for negatives in ("gather", "ring"):
            options = options_of(True, False, True, negatives=negatives)
            loss, _ = on_mesh(functools.partial(loss_under_test, mesh=mesh, **options), mesh, zeros, batch)
            assert loss == pytest.approx(np.log(NUM_QUERIES), rel=1e-6)


def test_hits_are_queries_whose_own_document_scores_highest():
    queries = jnp.eye(3)[jnp.array([0, 2, 2])]
    documents = jnp.eye(3)[:, None, :]
    related = Relations(excluded=jnp.zeros((3, 3, 1), bool), positive=jnp.eye(3, dtype=bool)[:, :, None])
    _, hits = info_nce(queries, documents, jnp.float32(1), related, symmetric=False)
    assert hits.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(UsageError, match="temperature="):
        Contrastive(temperature=temperature)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cache_chunks": 0}, "cache_chunks=0 must be at least 1"),
        ({"matryoshka_dims": (0, 4)}, r"matryoshka_dims=\(0, 4\) must be at least 1"),
        ({"matryoshka_dims": (8, 4)}, r"matryoshka_dims=\(8, 4\) must be at least 1, each above"),
        ({"matryoshka_weights": (1.0,)}, r"matryoshka_weights=\(1.0,\) must be 0, one for each"),
        ({"matryoshka_dims": (4,), "matryoshka_weights": (-1.0,)}, "must all be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(fields, said):
    with pytest.raises(UsageError, match=said):
        Contrastive(**fields)


@pytest.mark.parametrize(
    ("dims", "said"), [((4, 16), "goes beyond the vectors, which have 8"), ((4,), "must end with 8")]
)
def test_matryoshka_dims_must_end_with_all_dims(dims, said):
    with pytest.raises(UsageError, match=said):
        Contrastive(matryoshka_dims=dims).prefixes(8)
