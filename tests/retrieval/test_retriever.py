import dataclasses
import shutil

import numpy as np
import pytest

from jaxscale.errors import DataError, UsageError, VerificationError
from jaxscale.mesh import mesh_from_text
from retrieval.embed import embed_corpus
from retrieval.encode import encode_texts
from retrieval.evaluate import evaluate
from retrieval.formats.beir import BeirFolder
from retrieval.index.bm25_folder import build_bm25
from retrieval.index.build import build_index
from retrieval.index.parameters import IndexRequest
from retrieval.records import Query
from retrieval.retriever import Retriever, Sources
from retrieval.search.hybrid import FusionConfig
from retrieval.towers.retriever_folder import read_retriever
from tests.retrieval.tiny_retriever import write_corpus, write_retriever

NUM_DOCS = 40


@pytest.fixture(scope="module")
def mesh():
    return mesh_from_text("data=1@0")


@pytest.fixture(scope="module")
def home(tmp_path_factory, mesh):
    """A folder with all parts under their usual names."""
    home = tmp_path_factory.mktemp("home")
    corpus = write_corpus(home / "corpus", num_docs=NUM_DOCS)
    towers = write_retriever(home / "model")
    vectors = embed_corpus(towers, corpus, home / "vectors", mesh, shard_size=32)
    build_index(vectors, home / "flat", IndexRequest(kind="flat"), mesh)
    build_bm25(corpus, home / "bm25")
    return home


@pytest.fixture(scope="module")
def dense(home, mesh):
    return Retriever.load(home / "model", vectors=home / "vectors", corpus=home / "corpus", mesh=mesh)


@pytest.fixture(scope="module")
def hybrid(home, mesh):
    return Retriever.load(home, mesh=mesh, fusion=FusionConfig(dense_weight=0.5))


def test_hits_are_the_documents_with_the_highest_inner_product(home, dense, mesh):
    query = "alpha beta gamma"
    hits = dense.search(query, k=5)
    docs, towers = list(BeirFolder.open(home / "corpus").docs()), read_retriever(home / "model")
    rows, asked = (
        encode_texts(towers.document, texts, mesh, compute_dtype="float32").vectors
        for texts in ([doc.passage for doc in docs], [query])
    )
    scores = rows @ asked[0]
    best = np.argsort(-scores, kind="stable")[:5]
    assert [hit.doc for hit in hits] == [docs[row] for row in best]
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose([hit.score for hit in hits], scores[best], atol=1e-5)
    assert dense.verified


def test_an_index_finds_what_exact_search_finds(home, dense, mesh):
    indexed = Retriever.load(home / "model", index=home / "flat", mesh=mesh)
    texts = ["alpha", "tau sigma", "kappa lambda mu"]
    ids = [[hit.doc_id for hit in hits] for hits in indexed.search_many(texts, 4)]
    assert ids == [[hit.doc_id for hit in hits] for hits in dense.search_many(texts, 4)]
    assert indexed.search("alpha", 1)[0].doc is None


def test_one_folder_is_enough(home, hybrid, dense):
    bm25 = Retriever.load(Sources(bm25=home / "bm25", corpus=home / "corpus"))
    found = {name: retriever.search("alpha beta", NUM_DOCS) for name, retriever in (("h", hybrid), ("b", bm25))}
    assert {hit.doc_id for hit in found["h"]} == {f"d{i}" for i in range(NUM_DOCS)}
    assert found["h"][0].doc.passage
    only_dense = dataclasses.replace(hybrid.text_search.config, dense_weight=1.0)
    hybrid_of_dense = Retriever.load(home, fusion=only_dense)
    assert [h.doc_id for h in hybrid_of_dense.search("alpha", 9)] == [h.doc_id for h in dense.search("alpha", 9)]


def test_k_above_n_gives_all(dense):
    assert len(dense.search("alpha", 10_000)) == NUM_DOCS


def test_the_weight_chosen_on_dev_is_the_best_of_its_grid(home, hybrid, mesh):
    folder = BeirFolder.open(home / "corpus")
    queries, qrels = list(folder.queries()), folder.qrels("dev")
    chosen, weights = hybrid.choose_fusion_weight(queries, qrels)
    judged = [query for query in queries if query.id in qrels]
    measured = dict(weights.measured)
    for weight in (0.0, 0.35, 1.0):
        config = FusionConfig(dense_weight=weight)
        run = Retriever.load(home, mesh=mesh, fusion=config).run(judged, 10)
        assert measured[weight] == evaluate(run, qrels, ["nDCG@10"]).mean("nDCG@10")
    assert chosen.text_search.config.dense_weight == weights.dense_weight
    assert measured[weights.dense_weight] == max(measured.values()) >= measured[0.0]


def test_a_query_encoder_that_does_not_speak_the_contract_is_refused(home, mesh, tmp_path):
    write_retriever(tmp_path / "other", seed=1)
    for part in ({"vectors": home / "vectors"}, {"index": home / "flat"}):
        with pytest.raises(UsageError, match=r"query encoder does not speak .* its weights or its tokenizer"):
            Retriever.load(tmp_path / "other", mesh=mesh, **part)
    write_retriever(tmp_path / "prefixed", prefix="query: ")
    with pytest.raises(UsageError, match=r"prefix='query: ', expected ''"):
        Retriever.load(tmp_path / "prefixed", vectors=home / "vectors", mesh=mesh)


def test_vectors_that_are_not_normalised_are_compared_by_cosine(tmp_path, mesh):
    corpus = write_corpus(tmp_path / "corpus", num_docs=20)
    towers = write_retriever(tmp_path / "model", normalize=False, score="cosine")
    vectors = embed_corpus(towers, corpus, tmp_path / "vectors", mesh)
    build_index(vectors, tmp_path / "i", IndexRequest(kind="flat"), mesh)
    rows, lengths = vectors.read(), np.linalg.norm(vectors.read(), axis=1)
    assert np.ptp(lengths) > 0.01
    query = encode_texts(towers.query, ["alpha"], mesh, compute_dtype="float32").vectors[0]
    cosines = rows @ query / lengths / np.linalg.norm(query)
    for part in ({"vectors": tmp_path / "vectors"}, {"index": tmp_path / "i"}):
        hits = Retriever.load(tmp_path / "model", mesh=mesh, **part).search("alpha", 20)
        np.testing.assert_allclose([h.score for h in hits], np.sort(cosines)[::-1], atol=1e-5)


def test_parts_of_other_corpora_are_refused(home, mesh, tmp_path):
    other = write_corpus(tmp_path / "corpus", num_docs=NUM_DOCS, seed=5)
    build_bm25(other, tmp_path / "bm25")
    with pytest.raises(DataError, match="BM25 index is of another corpus than the vectors"):
        Retriever.load(home / "model", vectors=home / "vectors", bm25=tmp_path / "bm25", mesh=mesh)
    with pytest.raises(DataError, match="is not the one that is searched"):
        Retriever.load(home / "model", vectors=home / "vectors", corpus=tmp_path / "corpus", mesh=mesh)


def test_a_damaged_part_is_named(home, mesh, tmp_path):
    shutil.copytree(home / "bm25", tmp_path / "bm25")
    file = tmp_path / "bm25" / "scorer" / "data.csc.index.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(VerificationError, match=r"data\.csc\.index\.npy"):
        Retriever.load(home / "model", vectors=home / "vectors", bm25=tmp_path / "bm25", mesh=mesh)
    unverified = Retriever.load(Sources(bm25=tmp_path / "bm25"), check="sizes")
    assert not unverified.verified


def test_sources_that_make_no_search_are_refused(home, tmp_path):
    with pytest.raises(UsageError, match="index and vectors are both given"):
        Sources(model=home, index=home, vectors=home)
    with pytest.raises(UsageError, match="needs the model that encodes queries"):
        Sources(vectors=home)
    with pytest.raises(UsageError, match="nothing to search with"):
        Sources(model=home)
    with pytest.raises(UsageError, match="nothing to search"):
        Sources()
    with pytest.raises(DataError, match="holds neither index/ nor vectors/ nor bm25/"):
        Retriever.load(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        Retriever.load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds jaxscale.bm25, expected jaxscale.vectors"):
        Retriever.load(home / "model", vectors=home / "bm25")


def test_texts_are_encoded_with_the_model_and_with_one_alone(home, dense, mesh):
    towers, docs = read_retriever(home / "model"), list(BeirFolder.open(home / "corpus").docs())[:3]
    queries = ["alpha", "beta gamma"]
    expected = encode_texts(towers.query, queries, mesh).vectors
    passages = encode_texts(towers.document, [doc.passage for doc in docs], mesh).vectors
    alone = Retriever.load(home / "model", mesh=mesh)
    for retriever in (dense, alone):
        np.testing.assert_array_equal(retriever.encode_queries(queries), expected)
        np.testing.assert_array_equal(retriever.encode_documents(docs), passages)
        np.testing.assert_array_equal(retriever.encode_documents([doc.passage for doc in docs]), passages)
    with pytest.raises(UsageError, match="a model alone encodes texts"):
        alone.search("alpha")
    with pytest.raises(UsageError, match="there is no model to encode with"):
        Retriever.load(Sources(bm25=home / "bm25"), mesh=mesh).encode_queries(queries)


def test_bad_queries_are_refused(dense):
    with pytest.raises(UsageError, match="the query is empty"):
        dense.search("  ")
    with pytest.raises(UsageError, match="query 1 of 2 is empty"):
        dense.search_many(["alpha", ""])
    with pytest.raises(UsageError, match="k=0 must be at least 1"):
        dense.search("alpha", 0)
    with pytest.raises(UsageError, match="only be chosen for a hybrid search"):
        dense.choose_fusion_weight([Query("q", "alpha")], {"q": {"d1": 1}})
