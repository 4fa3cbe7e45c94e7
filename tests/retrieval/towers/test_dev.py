"""The dev metric: equal to evaluating every text by itself, the same on every mesh, deterministic samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.sharding.plan import replicated
from retrieval.evaluate import evaluate
from retrieval.towers.dev import sample
from retrieval.towers.encoder import apply_encoder
from tests.retrieval.towers.small_pairs import NUM_DOCS, made_up_records, random_params, tiny_job, write_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "beir")


def plain_metrics(objective, params, docs, queries, qrels):
    """Every text encoded in one padded batch, every pair scored, sorted in Python."""

    def vectors(side, texts):
        config = objective.towers.config(side)
        ids = objective.tokenizer.encode_batch(texts, config.max_length).ids
        tokens = np.zeros((len(ids), config.max_length), np.int32)
        mask = np.zeros_like(tokens, bool)
        for row, of_text in enumerate(ids):
            tokens[row, : len(of_text)], mask[row, : len(of_text)] = of_text, True
        encode = jax.jit(lambda p: apply_encoder(config, p, tokens, mask, compute_dtype=jnp.float32))
        return np.asarray(encode(objective.towers.params(params["towers"], side)))

    scores = vectors("query", [q.text for q in queries]) @ vectors("document", [d.passage for d in docs]).T
    run = {
        query.id: {docs[j].id: float(scores[i, j]) for j in sorted(range(len(docs)), key=lambda j: -scores[i, j])[:10]}
        for i, query in enumerate(queries)
    }
    evaluation = evaluate(run, qrels, ["nDCG@10", "RR@10"])
    return {measure: evaluation.mean(measure) for measure in ("nDCG@10", "RR@10")}


def test_metrics_equal_the_plain_ones_on_every_mesh(folder):
    docs, queries, qrels = made_up_records()
    objective = tiny_job(folder, data={"num_dev_queries": None, "num_dev_documents": None}).objective()
    params = random_params(objective.init_params)
    dev_queries = [query for query in queries if query.id in qrels["dev"]]
    expected = plain_metrics(objective, params, docs, dev_queries, qrels["dev"])
    assert 0 < expected["RR@10"] < 1
    for text in ("data=1", "data=2,fsdp=2,tensor=2"):
        mesh = make_mesh(MeshSpec.parse(text), jax.devices()[: MeshSpec.parse(text).num_devices])
        got = objective.evaluate(jax.device_put(params, replicated(mesh)), mesh)
        assert got == pytest.approx(expected, abs=1e-9)


def test_the_dev_set_holds_the_relevant_documents_and_others_up_to_the_limit(folder):
    _, _, qrels = made_up_records()
    objective = tiny_job(folder, data={"num_dev_queries": 6, "num_dev_documents": 20}).objective()
    dev = objective.dev
    assert len(dev.query_ids) == 6
    assert dev.qrels == {query: qrels["dev"][query] for query in dev.query_ids}
    assert len(set(dev.document_ids)) == len(dev.document_ids) == 20
    assert {doc for judged in dev.qrels.values() for doc in judged} <= set(dev.document_ids)
    assert sorted(tiny_job(folder, training={"seed": 3}).objective().dev.query_ids) != sorted(dev.query_ids)


def test_a_figure_on_a_sample_says_so(folder):
    whole = tiny_job(folder, data={"num_dev_queries": None, "num_dev_documents": None}).objective()
    assert len(whole.dev.document_ids) == NUM_DOCS
    mesh = make_mesh(MeshSpec(), jax.devices()[:1])
    params = random_params(whole.init_params)
    assert set(whole.evaluate(params, mesh)) == {"nDCG@10", "RR@10"}
    some = tiny_job(folder, data={"num_dev_queries": None, "num_dev_documents": 40}).objective()
    assert set(some.evaluate(params, mesh)) == {"sample_nDCG@10", "sample_RR@10"}


def test_a_sample_is_the_same_in_any_order_and_grows_at_its_end():
    names = [f"n{i}" for i in range(50)]
    assert sample(reversed(names), 10) == sample(names, 10) == sample(names, 20)[:10]
    assert sorted(sample(names, None)) == sorted(names)
    assert sample(names, 10) != names[:10]
