"""Mined negatives: every rule against a plain loop, sampling, filling, the folder, and what is refused."""

import json
from collections import Counter

import numpy as np
import pytest

from jaxscale.errors import DataError, UsageError, VerificationError
from jaxscale.mesh import mesh_from_text
from jaxscale.store.verify import verify
from retrieval.embed import embed_corpus
from retrieval.formats.beir import BeirFolder, write_beir
from retrieval.records import Doc, Query
from retrieval.towers.mine_corpus import Miner
from retrieval.towers.mining import RULES, Mining, mine
from retrieval.towers.near_duplicates import duplicate_groups
from retrieval.towers.negatives_folder import read_description
from retrieval.towers.pair_table import make_table
from retrieval.towers.pairs import read_source
from retrieval.towers.retriever_folder import with_query_tower
from tests.retrieval.tiny_retriever import WORDS, tiny_towers
from tests.retrieval.towers.small_pairs import tiny_job

NUM_DOCS = 60


def records(num_docs=NUM_DOCS):
    """Passages, each fifth a copy of the one before; queries of their words, the first with two positives."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(6, 20))) for _ in range(num_docs)]
    docs = [Doc(f"d{row}", "", texts[row - 1 if row % 5 == 1 else row]) for row in range(num_docs)]
    queries = [Query(f"q{row}", " ".join(docs[row].text.split()[:4])) for row in range(0, num_docs, 2)]
    qrels = {query.id: {f"d{query.id[1:]}": 1} for query in queries}
    qrels["q0"]["d17"] = 2
    qrels["q2"]["d19"] = 0  # judged, and not relevant: it may be mined
    return docs, queries, {"train": qrels, "dev": {"q4": {"d4": 1}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mined") / "beir"
    write_beir(path, *records())
    return path


@pytest.fixture(scope="module")
def source(folder):
    return read_source(folder, "train", "train")


@pytest.fixture(scope="module")
def mesh():
    return mesh_from_text("data=4@0-3")


def vectors(num, seed):
    """Vectors of few values, so that scores tie."""
    return np.random.default_rng(seed).integers(-2, 3, (num, 6)).astype(np.float32)


def plain_mine(source, queries, documents, mining):
    """The format's page, word by word, without drawing: what is kept of each query, and the counts."""
    groups = list(range(len(source.docs)))
    if mining.duplicate_jaccard is not None:
        groups = duplicate_groups([doc.passage for doc in source.docs], mining.duplicate_jaccard).tolist()
    kept, counts = {}, Counter()
    for query_id, query in zip(source.qrels, queries.astype(np.float64), strict=True):
        scores = documents.astype(np.float64) @ query
        positives = [source.doc_rows[doc] for doc in source.qrels[query_id]]
        lowest = min(scores[row] for row in positives)
        best = sorted(range(len(documents)), key=lambda row: (-scores[row], row))[: mining.depth]
        left = []
        for place, row in enumerate(best):
            if place < mining.skip_first:
                counts["skip_first"] += 1
            elif row in positives:
                counts["positive"] += 1
            elif groups[row] in {groups[positive] for positive in positives}:
                counts["duplicate"] += 1
            elif mining.max_score is not None and scores[row] > mining.max_score:
                counts["max_score"] += 1
            elif mining.max_of_positive is not None and scores[row] >= (
                lowest * mining.max_of_positive if lowest > 0 else lowest * (2 - mining.max_of_positive)
            ):
                counts["max_of_positive"] += 1
            else:
                left.append(row)
        kept[query_id] = left
    return kept, counts


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_of_positive": None, "duplicate_jaccard": None},
        {"skip_first": 3, "max_score": 4.0, "max_of_positive": None},
        {"depth": NUM_DOCS, "max_of_positive": 0.6, "max_score": 6.0},
    ],
)
def test_what_is_kept_and_counted_is_what_a_plain_loop_keeps(source, mesh, settings):
    mining = Mining(**{"depth": 25, "num_negatives": 5, "fill": False} | settings)
    queries, documents = vectors(len(source.qrels), 1), vectors(NUM_DOCS, 2)
    expected, counts = plain_mine(source, queries, documents, mining)
    mined = mine(source, queries, documents, mesh, mining)
    assert {of.query_id: of.rows.tolist() for of in mined.negatives} == {q: rows[:5] for q, rows in expected.items()}
    for of, query in zip(mined.negatives, queries, strict=True):
        np.testing.assert_array_equal(of.scores, documents[of.rows] @ query)
    assert {rule: mined.counts[f"dropped.{rule}"] for rule in RULES} == {rule: counts[rule] for rule in RULES}
    short = sum(len(rows) < 5 for rows in expected.values())
    assert (mined.counts["queries_short"], mined.counts["queries_lacking"]) == (short, short)
    assert mined.counts["candidates"] == mining.depth * len(source.qrels)
    assert mined.counts["negatives"] == sum(min(5, len(rows)) for rows in expected.values())


def test_uniform_sampling_is_of_what_is_left_by_seed_and_query_alone(source, mesh):
    queries, documents = vectors(len(source.qrels), 1), vectors(NUM_DOCS, 2)

    def mined(seed, num_negatives=3):
        rules = {"depth": 25, "fill": False, "sampling": "uniform", "max_of_positive": None}
        mining = Mining(seed=seed, num_negatives=num_negatives, **rules)
        found = mine(source, queries, documents, mesh, mining).negatives
        return {of.query_id: of.rows.tolist() for of in found}, plain_mine(source, queries, documents, mining)[0]

    chosen, left = mined(0)
    drawn = Counter()
    for query_id, rows in chosen.items():
        assert len(rows) == 3
        assert rows == [row for row in left[query_id] if row in rows]  # best first
        drawn.update(left[query_id].index(row) for row in rows)
    assert len(drawn) > 12
    assert mined(0)[0] == chosen != mined(1)[0]
    assert mined(0, 100)[0] == left


def test_a_short_query_is_filled_with_documents_from_beyond_that_are_no_positives(source, mesh):
    queries, documents = vectors(len(source.qrels), 1), vectors(NUM_DOCS, 2)
    settings = {"depth": 10, "num_negatives": 6, "max_of_positive": 0.9}
    without = mine(source, queries, documents, mesh, Mining(fill=False, **settings))
    filled = mine(source, queries, documents, mesh, Mining(**settings))
    groups = duplicate_groups([doc.passage for doc in source.docs], 0.8)
    num_filled = 0
    for before, after, query in zip(without.negatives, filled.negatives, queries, strict=True):
        num_found = len(before.rows)
        assert after.rows[:num_found].tolist() == before.rows.tolist()
        assert len(set(after.rows.tolist())) == 6
        scores = documents @ query
        np.testing.assert_array_equal(after.scores, scores[after.rows])
        looked_at = sorted(range(NUM_DOCS), key=lambda row: (-scores[row], row))[:10]
        positives = {groups[source.doc_rows[doc]] for doc in source.qrels[after.query_id]}
        for row in after.rows[num_found:]:
            assert row not in looked_at
            assert groups[row] not in positives
        num_filled += 6 - num_found
    assert filled.counts["filled"] == num_filled > 0
    assert filled.counts["queries_short"] == without.counts["queries_lacking"] > 0
    assert filled.counts["queries_lacking"] == 0


def test_a_corpus_without_other_documents_leaves_queries_lacking(source, mesh):
    mining = Mining(depth=NUM_DOCS, num_negatives=NUM_DOCS, max_of_positive=None)
    mined = mine(source, vectors(len(source.qrels), 1), vectors(NUM_DOCS, 2), mesh, mining)
    assert mined.counts["queries_lacking"] == len(source.qrels)
    assert mined.counts["filled"] == 0


def miner(**changes):
    fields = {"towers": tiny_towers(), "split": "train", "compute_dtype": "float32", "vectors": None}
    return Miner(**fields | {"mining": Mining(depth=30, num_negatives=3)} | changes)


def test_the_folder_is_the_same_of_committed_vectors_and_on_any_mesh(folder, source, mesh, tmp_path):
    embedded = embed_corpus(tiny_towers(), BeirFolder.open(folder), tmp_path / "vectors", mesh_from_text("data=1@0"))
    alone = miner().mine_to(tmp_path / "alone", source, mesh_from_text("data=1@0"))
    spread = miner(vectors=embedded).mine_to(tmp_path / "spread", source, mesh)
    lines = [json.loads(line) for line in (tmp_path / "alone" / "negatives.jsonl").read_text().splitlines()]
    others = [json.loads(line) for line in (tmp_path / "spread" / "negatives.jsonl").read_text().splitlines()]
    assert [line["query_id"] for line in lines] == list(source.qrels)
    assert [line["doc_ids"] for line in lines] == [line["doc_ids"] for line in others]
    assert spread.manifest.parents["vectors"] == embedded.manifest.identity
    assert "vectors" not in alone.manifest.parents
    assert {**alone.manifest.parents, "vectors": embedded.manifest.identity} == spread.manifest.parents
    assert read_description(tmp_path / "alone").mining == Mining(depth=30, num_negatives=3)
    assert [report.format for report in verify(tmp_path / "alone").directories] == ["jaxscale.negatives"]


def test_a_query_tower_that_joined_the_space_mines_with_the_vectors_that_were_there(folder, source, tmp_path):
    mesh, teacher = mesh_from_text("data=1@0"), tiny_towers()
    embedded = embed_corpus(teacher, BeirFolder.open(folder), tmp_path / "vectors", mesh)
    student = with_query_tower(teacher, tiny_towers(seed=1).query)
    mined = miner(towers=student, vectors=embedded).mine_to(tmp_path / "negatives", source, mesh).path
    description = read_description(mined)
    assert description.contract == teacher.contract
    assert description.query_encoder == student.identity("query").sha256 != teacher.identity("query").sha256


def test_training_takes_the_folder_and_a_file_of_its_lines_alike(folder, source, tmp_path):
    mined = miner().mine_to(tmp_path / "negatives", source, mesh_from_text("data=1@0")).path
    table = make_table(source, mined, 3)
    lines = [json.loads(line) for line in (mined / "negatives.jsonl").read_text().splitlines()]
    for line, rows in zip(lines, table.hard_negatives, strict=True):
        assert {source.docs[row].id for row in rows} == set(line["doc_ids"])
    hard = {"num_hard_negatives": 3, "query_buckets": (8,)}
    of_folder, of_file = (
        tiny_job(folder, data={"hard_negatives": str(path)} | hard).objective().identity
        for path in (mined, mined / "negatives.jsonl")
    )
    assert of_folder == of_file


def test_negatives_of_another_corpus_are_refused_by_the_hashes_of_both(source, tmp_path):
    """Its documents have the same ids: without the hash nobody would notice."""
    docs, queries, qrels = records()
    other = [Doc(doc.id, "", f"{doc.text} ze") for doc in docs]
    write_beir(tmp_path / "other", other, queries, qrels)
    changed = read_source(tmp_path / "other", "train", "train")
    mined = miner().mine_to(tmp_path / "negatives", changed, mesh_from_text("data=1@0")).path
    description = read_description(mined)
    make_table(changed, mined, 3)
    with pytest.raises(DataError, match=rf"corpus {description.corpus[:12]}, but data\.folder has the corpus") as error:
        make_table(source, mined, 3)
    assert miner().description(source).corpus[:12] in str(error.value)


def test_a_damaged_folder_and_a_folder_of_something_else_are_refused(folder, source, tmp_path):
    mined = miner().mine_to(tmp_path / "negatives", source, mesh_from_text("data=1@0")).path
    file = mined / "negatives.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"q2"', b'"q4"', 1))
    with pytest.raises(VerificationError, match=r"negatives\.jsonl"):
        make_table(source, mined, 3)
    with pytest.raises(DataError, match="nor a folder with a negatives"):
        make_table(source, folder, 3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_negatives": 0}, "num_negatives=0 must be at least 1"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"skip_first": -1}, "skip_first=-1 must be at least 0"),
        ({"skip_first": 100}, "skip_first=100 must be at least 0 and below depth=100"),
        ({"max_score": float("nan")}, "max_score=nan must be a finite number"),
        ({"max_of_positive": 0.0}, r"max_of_positive=0\.0 must be above 0 and at most 1"),
        ({"max_of_positive": 1.01}, r"max_of_positive=1\.01 must be above 0 and at most 1"),
        ({"duplicate_jaccard": 0.4}, r"duplicate_jaccard=0\.4 must be between 0\.5 and 1"),
    ],
)
def test_rules_out_of_range_are_refused(settings, said):
    with pytest.raises(UsageError, match=said):
        Mining(**settings)


def test_what_does_not_suit_the_corpus_or_the_scores_is_refused_before_anything_is_written(source, mesh, tmp_path):
    def refused(error, said, **changes):
        with pytest.raises(error, match=said):
            miner(**changes).mine_to(tmp_path / "negatives", source, mesh)
        assert not (tmp_path / "negatives").exists()

    refused(UsageError, "depth=61 is more than the 60 documents of the corpus", mining=Mining(depth=61))
    refused(UsageError, r"max_score=1\.5 must be between -1 and 1", mining=Mining(depth=9, max_score=1.5))
    write_beir(tmp_path / "other", *records(NUM_DOCS - 2)[:2], {})
    of_other = embed_corpus(tiny_towers(), BeirFolder.open(tmp_path / "other"), tmp_path / "of_other", mesh)
    refused(DataError, "these vectors are of the corpus", vectors=of_other)
    refused(UsageError, "does not speak the embedding space", towers=tiny_towers(seed=1), vectors=of_other)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(UsageError, match="exists already"):
        miner().mine_to(tmp_path / "there", source, mesh)
