"""`jaxscale mine`, and a folder that `train` refuses; bad input ends with its code and writes nothing."""

import json

import pytest

from launch.cli import main
from retrieval.formats.beir import write_beir
from tests.retrieval.tiny_retriever import tiny_docs, tiny_queries, write_retriever

NUM_DOCS = 40


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A corpus, a retriever and another one, and vectors of each corpus by the first."""
    home = tmp_path_factory.mktemp("mine")
    for name, seed in (("corpus", 0), ("other", 1)):
        docs = tiny_docs(NUM_DOCS, seed)
        queries, qrels = tiny_queries(docs, 36)
        write_beir(home / name, docs, queries, {"train": qrels["test"], "dev": qrels["dev"]})
    write_retriever(home / "model")
    write_retriever(home / "stranger", seed=1)
    for name in ("corpus", "other"):
        line = ["embed", "--model", home / "model", "--corpus", home / name, "--out", home / f"{name}-vectors"]
        assert main([*map(str, line), "--mesh", "data=1@0"]) == 0
    mined = mine(home, home / "negatives", "--depth", "20", "--num-negatives", "2", "--json", str(home / "report.json"))
    assert mined == 0
    return home


def mine(home, out, *words, model="model", corpus="corpus"):
    line = ["mine", "--model", str(home / model), "--corpus", str(home / corpus), "--out", str(out)]
    return main([*line, "--mesh", "data=1@0", *words])


def test_what_it_reports_is_what_it_wrote(home, capsys):
    report = json.loads((home / "report.json").read_text())
    lines = [json.loads(line) for line in (home / "negatives" / "negatives.jsonl").read_text().splitlines()]
    counts = report["counts"]
    assert (counts["queries"], counts["documents"], counts["candidates"]) == (18, NUM_DOCS, 360)
    assert counts["negatives"] == sum(len(line["doc_ids"]) for line in lines) == 36
    assert all(f"d{line['query_id'][1:]}" not in line["doc_ids"] for line in lines)
    assert main(["verify", str(home / "negatives")]) == 0
    assert "jaxscale.negatives" in capsys.readouterr().out
    with_vectors = mine(
        home, home / "same", "--depth", "20", "--num-negatives", "2", "--vectors", str(home / "corpus-vectors")
    )
    assert with_vectors == 0
    same = [json.loads(line) for line in (home / "same" / "negatives.jsonl").read_text().splitlines()]
    assert [line["doc_ids"] for line in same] == [line["doc_ids"] for line in lines]
    assert "18 queries" in capsys.readouterr().out


def test_train_refuses_the_folder_of_another_corpus_and_writes_nothing(home, tmp_path, capsys):
    line = ["train", "two_tower_tiny", "--out", str(tmp_path / "run"), "--data.folder", str(home / "other")]
    assert main([*line, "--data.hard-negatives", str(home / "negatives"), "--data.num-hard-negatives", "2"]) == 3
    assert "its negatives are of the corpus" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--depth", "41"], 2, "depth=41 is more than the 40 documents"),
        (["--depth", "5", "--skip-first", "5"], 2, "skip_first=5 must be at least 0 and below depth=5"),
        (["--depth", "9", "--max-of-positive", "1.5"], 2, "max_of_positive=1.5 must be above 0"),
        (["--depth", "9", "--max-score", "2"], 2, "max_score=2.0 must be between -1 and 1"),
        (["--depth", "9", "--split", "test"], 3, "test"),
        (["--depth", "9", "--vectors", "{home}/other-vectors"], 3, "these vectors are of the corpus"),
        (["--depth", "9", "--vectors", "{home}/none"], 3, "none"),
        (["--depth", "9", "--vectors", "{home}/corpus"], 3, "expected jaxscale.vectors"),
        (["--depth", "9", "--vectors", "{home}/corpus-vectors", "--model", "{home}/stranger"], 2, "does not speak"),
        (["--depth", "9", "--mesh", "data=1000"], 2, "1000"),
        (["--out", "{home}/model"], 2, "exists already"),
    ],
)
def test_bad_input_writes_nothing(home, tmp_path, capsys, words, code, said):
    assert mine(home, tmp_path / "out", *(word.format(home=home) for word in words)) == code
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("qrels", "said"),
    [
        ("q18\td18\t0\nq19\td19\t1\n", "'q18', have no relevant document"),
        ("q18\td1000\t1\n", "document 'd1000' of query 'q18' is not in corpus.jsonl"),
        ("q1000\td18\t1\n", "query 'q1000' is not in queries.jsonl"),
        ("", "no query has a relevant document"),
    ],
)
def test_judgements_that_nothing_can_be_mined_for_are_bad_data(home, tmp_path, capsys, qrels, said):
    corpus = tmp_path / "corpus"
    (corpus / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl"):
        (corpus / name).write_bytes((home / "corpus" / name).read_bytes())
    (corpus / "qrels" / "train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{qrels}")
    assert mine(home, tmp_path / "out", "--depth", "9", corpus=corpus) == 3
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
