"""`jaxscale rerank` after a training of a re-ranker; bad input ends with its code and writes nothing."""

import json

import pytest

from jaxscale.mesh import mesh_from_text
from launch.cli import main
from retrieval.formats.beir import write_beir
from retrieval.formats.trec import ranked, read_run, write_run
from retrieval.reranking.reranker import Reranker
from tests.retrieval.tiny_retriever import write_retriever
from tests.retrieval.towers.small_pairs import made_up_records, write_pairs


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
    mined = ["mine", "--model", home / "retriever", "--corpus", home / "corpus", "--out", home / "negatives"]
    assert main([*map(str, mined), "--mesh", "data=1@0", "--depth", "20", "--num-negatives", "3"]) == 0
    line = [
        "train",
        "reranker_tiny",
        "--data.folder",
        home / "corpus",
        "--out",
        home / "trained",
        "--mesh",
        "fsdp=4,tensor=2",
    ]
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


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--run", "{bad}/document"], 3, "document 'nowhere' of query"),
        (["--run", "{bad}/query"], 3, "query 'nobody' is not among the queries of"),
        (["--split", "train"], 3, "judged in 'train'"),
        (["--run", "{bad}/empty"], 3, "holds no query"),
        (["--model", "{home}/retriever"], 3, "expected jaxscale.reranker"),
        (["--model", "{home}/corpus"], 3, "corpus"),
        (["--depth", "0"], 2, "depth=0 must be at least 1"),
        (["--mesh", "data=1000"], 2, "1000"),
        (["--negatives", "{home}/negatives"], 2, "give --run FILE to re-rank a run, or"),
    ],
)
def test_bad_input_writes_nothing(home, tmp_path, capsys, words, code, said):
    bad, out = tmp_path / "bad", tmp_path / "out"
    bad.mkdir()
    out.mkdir()
    first = (home / "first.trec").read_text()
    (bad / "document").write_text(first.replace(" d1 ", " nowhere ", 1))
    (bad / "query").write_text(first.replace(first.split()[0], "nobody"))
    (bad / "empty").write_text("")
    assert rerank(home, out / "new.trec", *(word.format(home=home, bad=bad) for word in words)) == code
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown
    assert list(out.iterdir()) == []


def score(home, out, *words):
    flags = {"--model": home / "trained", "--corpus": home / "corpus", "--negatives": home / "negatives", "--out": out}
    return main(["rerank", *(str(word) for flag in flags.items() for word in flag), "--mesh", "data=1@0", *words])


def train_tower(home, out, *words):
    line = ["train", "two_tower_tiny", "--data.folder", home / "corpus", "--out", out, "--mesh", "fsdp=8"]
    more = ["--operation.compile-cache", "off", "--training.num-steps", "1", "--data.num-hard-negatives", "2"]
    return main([*map(str, line), *more, *map(str, words)])


def test_scored_negatives_say_where_they_come_from_and_teach_a_tower(home, tmp_path, capsys):
    out = tmp_path / "scored"
    assert score(home, out, "--json", str(tmp_path / "report.json")) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"negatives", "reranker", "corpus", "query_encoder"} <= report["parents"].keys()
    assert main(["verify", str(out)]) == 0
    files = (home / "negatives" / "negatives.jsonl", out / "negatives.jsonl")
    before, after = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    kept = ("query_id", "doc_ids", "scores")
    assert [{name: line[name] for name in kept} for line in after] == before
    _, queries, qrels = made_up_records()
    docs = {doc.id: doc.passage for doc in made_up_records()[0]}
    reranker = Reranker.load(home / "trained", mesh=mesh_from_text("data=1@0"))
    for line in after[:3]:
        query = next(query.text for query in queries if query.id == line["query_id"])
        assert set(line["positive_ids"]) == {doc for doc, rel in qrels["train"][line["query_id"]].items() if rel}
        for ids, scores in (("doc_ids", "reranker_scores"), ("positive_ids", "positive_reranker_scores")):
            expected = reranker.scores(query, [docs[doc] for doc in line[ids]])
            assert line[scores] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-4)
    words = ["--contrastive.distill", "margin_mse", "--data.hard-negatives", out]
    assert train_tower(home, tmp_path / "run", *words) == 0
    capsys.readouterr()
    words[-1] = home / "negatives"
    assert train_tower(home, tmp_path / "none", *words) == 2
    assert "carry none; make them with `jaxscale rerank --negatives`" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_negatives_of_another_corpus_or_other_judgements_are_bad_data(home, tmp_path, capsys):
    docs, queries, qrels = made_up_records()
    train = qrels["train"]
    write_beir(tmp_path / "other", docs[:-1], queries[:-2], {"train": {"q1-0": {"d1": 1}}})
    write_beir(tmp_path / "fewer", docs, queries, {"train": {q: d for q, d in train.items() if q != "q1-0"}})
    write_beir(tmp_path / "more", docs, queries, {"train": train | {"q0-0": {"d0": 1}}})
    for corpus, said in (
        ("other", "its negatives are of the corpus"),
        ("fewer", "'q1-0' is not a judged one"),
        ("more", "mined with other queries or judgements"),
    ):
        assert score(home, tmp_path / "out", "--corpus", str(tmp_path / corpus)) == 3
        assert said in capsys.readouterr().err
    assert score(home, tmp_path / "out", "--negatives", str(home / "corpus")) == 3
    assert score(home, home / "retriever") == 2
    assert not (tmp_path / "out").exists()
