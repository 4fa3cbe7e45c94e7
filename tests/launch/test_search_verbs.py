"""embed, index build and search on the command line: the files they write, what they print, and how they refuse."""

import json
import shutil

import pytest

from launch.cli import main
from retrieval.formats.beir import BeirFolder
from retrieval.formats.trec import read_run
from retrieval.retriever import Retriever, Sources
from tests.retrieval.tiny_retriever import write_corpus, write_retriever

NUM_DOCS = 40
MESH = ("--mesh", "data=1@0")


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Everything, made by the verbs themselves."""
    home = tmp_path_factory.mktemp("home")
    write_corpus(home / "corpus", num_docs=NUM_DOCS)
    write_retriever(home / "model")
    embed = ("embed", "--model", home / "model", "--corpus", home / "corpus", "--out", home / "vectors", *MESH)
    assert run(*embed, "--json", home / "embed.json") == 0
    build = ("index", "build", "--out")
    assert run(*build, home / "bm25", "--kind", "bm25", "--corpus", home / "corpus") == 0
    flat = (*build, home / "index", "--kind", "flat", "--vectors", home / "vectors", *MESH)
    assert run(*flat, "--json", home / "index.json") == 0
    return home


@pytest.fixture
def parts(home):
    return {name: (f"--{name}", home / name) for name in ("model", "vectors", "index", "bm25", "corpus")}


def test_embed_reports_counts_and_parents(home, capsys):
    report = json.loads((home / "embed.json").read_text())
    assert report["counts"]["rows"] == NUM_DOCS
    assert set(report["parents"]) == {"model", "corpus"}
    before = (home / "vectors" / "MANIFEST.json").read_bytes()
    assert run("embed", "--model", home / "model", "--corpus", home / "corpus", "--out", home / "vectors", *MESH) == 0
    assert f"{NUM_DOCS} vectors of 16 dims in 1 shards" in capsys.readouterr().out
    assert (home / "vectors" / "MANIFEST.json").read_bytes() == before


def test_index_build_reports_its_measured_recall(home):
    report = json.loads((home / "index.json").read_text())
    assert report["parameters"] == {"type": "Flat"}
    assert report["recall"]["value"] == 1.0
    assert report["recall"]["queries"] == "sampled rows, each left out of its own result"


def test_recall_on_real_queries(home, tmp_path, capsys):
    words = ("index", "build", "--kind", "flat", "--vectors", home / "vectors", "--out", tmp_path / "i", *MESH)
    real = ("--recall-queries", home / "corpus", "--split", "dev", "--model", home / "model")
    assert run(*words, *real) == 0
    assert "recall@10 1.0000 against exact search, over 6 queries (given)" in capsys.readouterr().out


def test_one_query_prints_hits_with_title_and_text(home, parts, capsys, tmp_path):
    words = ("search", *parts["bm25"], *parts["corpus"], "--query", "title bepha", "--k", 3)
    assert run(*words, "--json", tmp_path / "r.json") == 0
    printed = capsys.readouterr().out.splitlines()
    hits = Retriever.load(Sources(bm25=home / "bm25", corpus=home / "corpus")).search("title bepha", 3)
    assert hits[0].doc.title
    assert printed[0] == f"  1  {hits[0].score:.4f}  {hits[0].doc_id}  {hits[0].doc.title}"
    assert printed[1].strip().removesuffix(" ...") in hits[0].doc.text
    report = json.loads((tmp_path / "r.json").read_text())
    assert [(hit["doc_id"], hit["score"]) for hit in report["hits"]] == [(hit.doc_id, hit.score) for hit in hits]
    assert report["how"] == {"search": "bm25"}


@pytest.mark.parametrize("searched", ["vectors", "index"])
def test_a_dense_run_is_what_the_retriever_finds(home, parts, tmp_path, searched):
    words = ("search", *parts["model"], *parts[searched], "--queries", home / "corpus", "--split", "test", *MESH)
    assert run(*words, "--run", tmp_path / "r.trec", "--k", 7) == 0
    found = read_run(tmp_path / "r.trec")
    queries = [q for q in BeirFolder.open(home / "corpus").queries() if q.id in found]
    assert len(queries) == 6
    retriever = Retriever.load(home / "model", **{searched: home / searched})
    expected = retriever.search_many([q.text for q in queries], 7)
    assert [list(found[q.id]) for q in queries] == [[hit.doc_id for hit in hits] for hits in expected]


def test_a_hybrid_run_with_the_weight_chosen_on_dev(home, tmp_path, capsys):
    words = ("search", "--home", home, "--hybrid", "--queries", home / "corpus", "--split", "test", *MESH)
    assert run(*words, "--dev", "dev", "--run", tmp_path / "h.trec", "--k", 20, "--json", tmp_path / "h.json") == 0
    how = json.loads((tmp_path / "h.json").read_text())["how"]
    weights = dict(how["nDCG@10"])
    assert weights[how["dense_weight"]] == max(weights.values())
    assert f"dense weight {how['dense_weight']} chosen on 'dev'" in capsys.readouterr().err
    assert weights[how["dense_weight"]] >= weights[0.0]


def test_a_dense_weight_of_zero_is_bm25(home, parts, tmp_path):
    queries = ("--queries", home / "corpus", "--split", "test", "--k", 20)
    assert run("search", "--home", home, *queries, "--dense-weight", 0, "--run", tmp_path / "h.trec", *MESH) == 0
    assert run("search", *parts["bm25"], *queries, "--run", tmp_path / "b.trec") == 0
    hybrid, bm25 = (read_run(tmp_path / f"{name}.trec") for name in "hb")
    assert {q: list(found) for q, found in hybrid.items()} == {q: list(found) for q, found in bm25.items()}


def test_a_run_that_is_there_is_replaced_whole(parts, tmp_path):
    (tmp_path / "q.tsv").write_text("a\talpha beta\n")
    (tmp_path / "r.trec").write_text("old\n")
    words = ("search", *parts["bm25"], "--queries", tmp_path / "q.tsv", "--run", tmp_path / "r.trec")
    assert run(*words, "--k", 2, "--tag", "mine") == 0
    lines = (tmp_path / "r.trec").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["a", "a"]
    assert lines[0].endswith(" mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q.tsv", "r.trec"]


def test_reciprocal_ranks_need_no_weight(home, capsys):
    assert run("search", "--home", home, "--fusion", "rrf", "--query", "alpha beta", *MESH) == 0
    assert len(capsys.readouterr().out.splitlines()) == 20


def test_an_unverified_search_says_so(parts, capsys):
    assert run("search", *parts["bm25"], "--query", "alpha", "--check", "sizes") == 0
    assert "unverified" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--bm25", "{home}/bm25"], 2, "give --query TEXT for one query, or --queries FILE --run FILE"),
        (["--bm25", "{home}/bm25", "--query", " "], 2, "the query is empty"),
        (["--bm25", "{home}/bm25", "--query", "x", "--k", "0"], 2, "k=0 must be at least 1"),
        (["--bm25", "{home}/bm25", "--queries", "{home}/corpus"], 2, "--queries and --run go together"),
        (["--bm25", "{home}/bm25", "--queries", "{home}/nothing", "--run", "{tmp}/r"], 3, "there is no"),
        (["--bm25", "{home}/nothing", "--query", "x"], 3, "there is no committed directory"),
        (["--bm25", "{home}/vectors", "--query", "x"], 3, "holds jaxscale.vectors, expected jaxscale.bm25"),
        (["--model", "{home}/bm25", "--vectors", "{home}/vectors", "--query", "x"], 3, "holds jaxscale.bm25, expected"),
        (["--vectors", "{home}/vectors", "--query", "x"], 2, "needs the model that encodes queries"),
        (["--query", "x"], 2, "there is nothing to search"),
        (["--home", "{home}", "--query", "x"], 2, "needs the weight of its dense list"),
        (["--home", "{home}", "--query", "x", "--fusion", "rrf", "--dense-weight", "0.5"], 2, "rrf has no weight"),
        (["--bm25", "{home}/bm25", "--query", "x", "--fusion", "rrf"], 2, "this search has one list only"),
        (["--bm25", "{home}/bm25", "--query", "x", "--dense-weight", "0.5"], 2, "this search has one list only"),
        (["--bm25", "{home}/bm25", "--query", "x", "--hybrid"], 2, "--hybrid needs --bm25 beside --model"),
        (["--home", "{home}", "--query", "x", "--dense-weight", "2"], 2, "dense_weight=2.0 must be between 0"),
    ],
)
def test_search_refuses(home, tmp_path, capsys, words, code, message):
    assert run("search", *(word.format(home=home, tmp=tmp_path) for word in words)) == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_query_encoder_of_another_space_is_refused(parts, tmp_path, capsys):
    write_retriever(tmp_path / "other", seed=3)
    assert run("search", "--model", tmp_path / "other", *parts["vectors"], "--query", "x", *MESH) == 2
    assert "does not speak the embedding space" in capsys.readouterr().err


def test_a_damaged_index_ends_with_5_and_names_the_file(home, parts, tmp_path, capsys):
    shutil.copytree(home / "index", tmp_path / "index")
    file = tmp_path / "index" / "index.faiss"
    file.write_bytes(file.read_bytes()[:-1])
    assert run("search", *parts["model"], "--index", tmp_path / "index", "--query", "x", *MESH) == 5
    assert "index.faiss" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--kind", "flat"], 2, "built from vectors: give --vectors"),
        (["--kind", "bm25"], 2, "built from words: give --corpus"),
        (["--kind", "flat", "--vectors", "{home}/vectors", "--k1", "1"], 2, "a flat index does not take --k1"),
        (["--kind", "bm25", "--corpus", "{home}/corpus", "--nlist", "4"], 2, "a bm25 index does not take --nlist"),
        (["--kind", "hnsw", "--vectors", "{home}/vectors", "--nlist", "4"], 2, "a hnsw index has no nlist"),
        (["--kind", "ivf_pq", "--vectors", "{home}/vectors"], 3, "needs at least 624 vectors to train k-means"),
        (["--kind", "bm25", "--corpus", "{home}/corpus", "--k1", "inf"], 2, "k1=inf must be a finite number"),
        (["--kind", "flat", "--vectors", "{home}/vectors", "--seed", "-1"], 2, "seed=-1 must be between 0"),
        (["--kind", "flat", "--vectors", "{home}/corpus"], 3, "holds jaxscale.beir, expected jaxscale.vectors"),
        (["--kind", "flat", "--vectors", "{home}/vectors", "--recall-queries", "x"], 2, "--model go together"),
    ],
)
def test_index_build_refuses_and_writes_nothing(home, tmp_path, capsys, words, code, message):
    assert run("index", "build", "--out", tmp_path / "i", *(word.format(home=home) for word in words)) == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_damaged_queries_and_texts_end_with_5_and_name_the_file(home, parts, tmp_path, capsys):
    for name in ("queries.jsonl", "qrels/dev.tsv", "corpus.jsonl"):
        corpus = tmp_path / name.replace("/", "-") / "corpus"
        shutil.copytree(home / "corpus", corpus)
        content = bytearray((corpus / name).read_bytes())
        content[-3] ^= 1
        (corpus / name).write_bytes(content)
        searched = ("search", "--home", home, "--corpus", corpus, "--dev", "dev", *MESH)
        asked = ("--query", "x") if name != "queries.jsonl" else ("--queries", corpus, "--run", tmp_path / "run")
        assert run(*searched, *asked) == 5
        assert f"{corpus / name}: has other bytes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_place_below_a_file_is_refused(home, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    words = ("embed", "--model", home / "model", "--corpus", home / "corpus", "--out", tmp_path / "file" / "v", *MESH)
    assert run(*words) == 2
    assert "file is no folder; choose another place" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_embed_refuses(home, tmp_path, capsys):
    words = ("embed", "--model", home / "model", "--corpus", home / "corpus")
    assert run(*words, "--out", home / "vectors", "--shard-size", 7, *MESH) == 2
    assert "shard_size is 16384, now 7; choose another --out" in capsys.readouterr().err
    assert run(*words, "--out", tmp_path / "v", "--shard-size", 0, *MESH) == 2
    assert run(*words, "--out", home / "corpus", *MESH) == 3
    assert "holds jaxscale.beir, expected jaxscale.vectors" in capsys.readouterr().err
    assert run("embed", "--model", home / "model", "--corpus", tmp_path / "none", "--out", tmp_path / "v") == 3
    assert run(*words, "--out", tmp_path / "v", "--encoder.pooling", "cls", *MESH) == 2
    assert "can't be overridden" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
