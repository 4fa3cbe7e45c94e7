"""`jaxscale rerank` after a training of a re-ranker; bad input ends with its code and writes nothing."""

import json

import pytest

from launch.cli import main
from retrieval.formats.trec import ranked, read_run, write_run
from tests.retrieval.towers.small_pairs import made_up_records, write_pairs
from tests.retrieval.tiny_retriever import write_retriever


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A corpus, a run of its dev queries, a re-ranker that `train` made, and a retriever."""
    home = tmp_path_factory.mktemp("rerank")
    write_pairs(home / "corpus")
    write_retriever(home / "retriever")
    docs, _, qrels = made_up_records()
    # The relevant document is the last but one of the twelve that a first stage found.
    run = {}
    for query_id, judged in qrels["dev"].items():
        others = [doc.id for doc in docs if doc.id not in judged][:11]
        order = [*others[:10], *judged, others[10]]
        run[query_id] = {doc_id: 1.0 / rank for rank, doc_id in enumerate(order, 1)}
    write_run(home / "first.trec", run, "first")
    line = ["train", "reranker_tiny", "--data.folder", home / "corpus", "--out", home / "trained", "--mesh", "fsdp=4,tensor=2"]
    assert main([*map(str, line), "--operation.compile-cache", "off", "--training.num-steps", "2"]) == 0
    return home


def rerank(home, out, *words):
    flags = {"--model": home / "trained", "--corpus": home / "corpus", "--run": home / "first.trec", "--out": out}
    return main(["rerank", *(str(word) for flag in flags.items() for word in flag), "--mesh", "data=1@0", *words])


def test_the_first_documents_are_reordered_and_the_others_keep_their_order(home, tmp_path, capsys):
    report = tmp_path / "report.json"
    assert rerank(home, tmp_path / "new.trec", "--split", "dev", "--depth", "8", "--json", str(report)) == 0
    before, after = read_run(home / "first.trec"), read_run(tmp_path / "new.trec")
    assert after.keys() == before.keys()
    for query_id, scores in after.items():
        old, new = ([doc for doc, _ in ranked(of)] for of in (before[query_id], scores))
        assert set(new[:8]) == set(old[:8])
        assert new[8:] == old[8:]
    said = json.loads(report.read_text())
    assert (said["num_queries"], said["num_scored"]) == (len(after), 8 * len(after))
    assert "documents re-ranked" in capsys.readouterr().out
