"""Who belongs to whom, hard negatives by step and by epoch, and what is refused of their file."""

import collections
import json

import numpy as np
import pytest

from jaxscale.errors import DataError
from retrieval.towers.in_batch import NO_DOCUMENT
from retrieval.towers.pair_table import make_table
from retrieval.towers.pairs import read_source
from tests.retrieval.towers.small_pairs import write_pairs


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return read_source(write_pairs(tmp_path_factory.mktemp("pairs") / "beir"), "train", "dev")


def test_every_relevant_pair_of_the_split_is_there_once(source):
    table = make_table(source, None, 0)
    got = {(table.query_ids[query], source.docs[doc].id) for query, doc in table.pairs}
    expected = {(query, doc) for query, judged in source.qrels.items() for doc, rel in judged.items() if rel > 0}
    assert len(table.pairs) == len(got)
    assert got == expected
    assert ("q1-0", "d2") in got
    assert not {query for query, _ in got} & source.dev_qrels.keys()


def test_known_positives_hold_all_relevant_documents_and_padding(source):
    table = make_table(source, None, 0)
    assert table.known_positives.shape[1] == 2
    for query_id, known in zip(table.query_ids, table.known_positives, strict=True):
        assert {source.docs[row].id for row in known if row != NO_DOCUMENT} == set(source.qrels[query_id])


def negatives_file(path, source, **changes):
    """Two hard negatives for each query, relevant to dev's queries alone; `changes` replace those of one."""
    lists = {query_id: ["d8", "d16"] for query_id in source.qrels} | changes
    path.write_text("".join(json.dumps({"query_id": q, "doc_ids": ids}) + "\n" for q, ids in lists.items()))
    return path


def test_hard_negatives_are_chosen_by_seed_and_step_without_repeats(source, tmp_path):
    path = negatives_file(tmp_path / "negatives.jsonl", source, **{"q1-0": ["d7", "d8", "d9", "d10"]})
    table = make_table(source, path, 2)
    row = table.query_ids.index("q1-0")
    rows = np.full(16, row)
    chosen = table.choose_hard_negatives(rows, 2, (0, 5))
    assert chosen.shape == (16, 2)
    assert {source.docs[doc].id for doc in chosen.ravel()} == {"d7", "d8", "d9", "d10"}
    assert all(len(set(pair)) == 2 for pair in chosen.tolist())
    np.testing.assert_array_equal(chosen, table.choose_hard_negatives(rows, 2, (0, 5)))
    assert not np.array_equal(chosen, table.choose_hard_negatives(rows, 2, (0, 6)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"q1-0": ["d7", "elsewhere"]}, "document 'elsewhere' is not in corpus.jsonl"),
        ({"q1-0": ["d7", "d7"]}, "query 'q1-0' has 1 different hard negatives, expected at least num_hard_negatives=2"),
        ({"stranger": ["d7", "d8"]}, "query 'stranger' is not a judged one"),
    ],
)
def test_a_negatives_file_of_another_corpus_is_refused(source, tmp_path, changes, said):
    path = negatives_file(tmp_path / "negatives.jsonl", source, **changes)
    with pytest.raises(DataError, match=said):
        make_table(source, path, 2)


@pytest.mark.parametrize("line", ["{", '["q", "d"]', '{"query_id": "q1-0"}', '{"query_id": "q1-0", "doc_ids": 3}'])
def test_a_malformed_line_is_refused_with_its_number(source, tmp_path, line):
    path = tmp_path / "negatives.jsonl"
    path.write_text('{"query_id": "q1-1", "doc_ids": ["d7", "d8"]}\n' + line + "\n")
    with pytest.raises(DataError, match=r"negatives\.jsonl:2"):
        make_table(source, path, 1)


def test_a_missing_negatives_file_is_refused(source, tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        make_table(source, tmp_path / "nothing.jsonl", 1)


def test_negatives_of_an_epoch_are_dealt_out_without_repetition(source, tmp_path):
    """`q1-0` has two pairs, so two turns an epoch, of 2 of its 7 negatives each: three turns to an order."""
    lists = {"q1-0": [f"d{number}" for number in range(10, 17)]}
    table = make_table(source, negatives_file(tmp_path / "negatives.jsonl", source, **lists), 2)
    query = table.query_ids.index("q1-0")
    pairs = np.flatnonzero(table.pairs[:, 0] == query)
    assert len(pairs) == 2
    turns = [
        tuple(chosen)
        for epoch in range(30)
        for chosen in table.hard_negatives_of_epoch(pairs, 2, epoch, seed=3).tolist()
    ]
    for order in range(20):
        dealt = [doc for turn in turns[3 * order : 3 * order + 3] for doc in turn]
        assert len(set(dealt)) == 6
    counts = collections.Counter(doc for turn in turns for doc in turn)
    assert {source.docs[doc].id for doc in counts} == set(lists["q1-0"])
    again = table.hard_negatives_of_epoch(pairs[::-1], 2, 4, seed=3).tolist()
    assert [tuple(chosen) for chosen in again[::-1]] == turns[8:10]
    assert table.hard_negatives_of_epoch(pairs, 2, 4, seed=4).tolist() != again[::-1]


def test_a_hard_negative_that_is_relevant_to_its_query_is_refused(source, tmp_path):
    path = negatives_file(tmp_path / "negatives.jsonl", source, **{"q1-0": ["d3", "d2", "d7"]})
    with pytest.raises(DataError, match="document 'd2' is relevant to query 'q1-0', so it is no negative of it"):
        make_table(source, path, 2)
    # `d3` is judged, but not relevant.
    make_table(source, negatives_file(path, source, **{"q1-0": ["d3", "d7"]}), 2)
