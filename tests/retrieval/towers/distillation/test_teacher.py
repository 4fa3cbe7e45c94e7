"""Teachers: their vectors made once, and refused where they are another's, of other texts, or of another space."""

import numpy as np
import pytest

from jaxscale.errors import DataError, UsageError
from retrieval.embed import embed_corpus
from retrieval.encode import encode_texts
from retrieval.formats.beir import write_beir
from retrieval.index.build import build_index
from retrieval.index.parameters import IndexRequest
from retrieval.records import Doc, Query
from retrieval.towers.distillation.teacher import (
    Teacher,
    open_documents,
    open_teacher,
    rows_of_queries,
    teacher_vectors,
)
from retrieval.towers.retriever_folder import join_towers, save_retriever
from tests.retrieval.towers.distillation.small_distillation import MESH, small_encoder, small_retriever

QUERIES = [Query(f"q{i}", text) for i, text in enumerate(["dada fifi", "gogo", "nunu papa riri", "bibi zuzu"])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A retriever of two towers, and its documents' vectors."""
    folder = tmp_path_factory.mktemp("teacher")
    query, document = small_encoder(num_layers=1), small_encoder(num_layers=1, seed=1)
    towers = join_towers(query=query, document=document, shared=False, score="cosine")
    save_retriever(folder / "retriever", towers)
    corpus = write_beir(folder / "beir", [Doc(q.id, "", q.text) for q in QUERIES], [], {})
    embed_corpus(towers, corpus, folder / "vectors", MESH)
    return folder


def teacher(folder, **fields):
    return Teacher(retriever=str(folder / "retriever"), **{name: str(value) for name, value in fields.items()})


def test_vectors_are_the_query_towers_and_are_made_once(folder, tmp_path):
    asked = teacher(folder, query_vectors=tmp_path / "queries")
    towers = open_teacher(asked)
    made = teacher_vectors(asked, towers, QUERIES, MESH)
    expected = encode_texts(towers.query, [query.text for query in QUERIES], MESH).vectors
    np.testing.assert_array_equal(rows_of_queries(made, QUERIES), expected)
    np.testing.assert_array_equal(rows_of_queries(made, QUERIES[::-1]), expected[::-1])
    stamp = (tmp_path / "queries" / "MANIFEST.json").stat().st_mtime_ns
    some = teacher_vectors(asked, towers, QUERIES[1:], MESH)
    np.testing.assert_array_equal(rows_of_queries(some, QUERIES[1:]), expected[1:])
    assert (tmp_path / "queries" / "MANIFEST.json").stat().st_mtime_ns == stamp


def test_a_query_that_is_missing_in_them_is_named(folder, tmp_path):
    asked = teacher(folder, query_vectors=tmp_path / "queries")
    made = teacher_vectors(asked, open_teacher(asked), QUERIES[:2], MESH)
    with pytest.raises(DataError, match=r"2 of 4 queries are missing in the teacher's vectors, such as 'q2'"):
        rows_of_queries(made, QUERIES)


def test_vectors_of_other_texts_are_refused(folder, tmp_path):
    asked = teacher(folder, query_vectors=tmp_path / "queries")
    towers = open_teacher(asked)
    teacher_vectors(asked, towers, [Query(q.id, q.text[::-1]) for q in QUERIES], MESH)
    with pytest.raises(DataError, match=r"a cosine of 0\.\d+ to the teacher's vector of its text"):
        teacher_vectors(asked, towers, QUERIES, MESH)


def test_the_document_tower_is_no_teacher(folder):
    asked = teacher(folder, query_vectors=folder / "vectors")
    with pytest.raises(UsageError, match="was made by the document tower, which is no teacher of queries"):
        teacher_vectors(asked, open_teacher(asked), QUERIES, MESH)


def test_vectors_of_another_space_are_refused(folder, tmp_path):
    other = small_retriever(seed=7, num_layers=1)
    save_retriever(tmp_path / "retriever", other)
    asked = teacher(tmp_path, query_vectors=folder / "vectors")
    with pytest.raises(UsageError, match="give the teacher's own vectors of the queries"):
        teacher_vectors(asked, other, QUERIES, MESH)


def test_documents_of_another_space_are_refused(folder, tmp_path):
    other = small_retriever(seed=7, num_layers=1)
    corpus = write_beir(tmp_path / "beir", [Doc(q.id, "", q.text) for q in QUERIES[:3]], [], {})
    vectors = embed_corpus(other, corpus, tmp_path / "vectors", MESH)
    build_index(vectors, tmp_path / "index", IndexRequest(kind="flat"), MESH)
    for part in ("vectors", "index"):
        asked = teacher(folder, **{part: tmp_path / part})
        with pytest.raises(UsageError, match=rf"teacher\.{part}=.*: not of the teacher's space"):
            open_documents(asked, open_teacher(asked))
    save_retriever(tmp_path / "retriever", other)
    mine = open_documents(teacher(tmp_path, vectors=tmp_path / "vectors", index=tmp_path / "index"), other)
    assert mine.identities.keys() == {"vectors", "index"}


def test_vectors_and_index_of_two_corpora_are_refused(folder, tmp_path):
    towers = open_teacher(teacher(folder))
    corpus = write_beir(tmp_path / "beir", [Doc("d", "", "dada"), Doc("e", "", "fifi")], [], {})
    vectors = embed_corpus(towers, corpus, tmp_path / "vectors", MESH)
    build_index(vectors, tmp_path / "index", IndexRequest(kind="flat"), MESH)
    asked = teacher(folder, vectors=folder / "vectors", index=tmp_path / "index")
    with pytest.raises(DataError, match="is of another corpus than"):
        open_documents(asked, towers)
