import numpy as np
import pytest

from jaxscale.errors import DataError, UsageError
from jaxscale.mesh import mesh_from_text
from retrieval.embed import embed_corpus, embed_described
from retrieval.encode import encode_texts
from retrieval.formats.beir import BeirFolder
from retrieval.vectors import open_vectors
from tests.jaxscale.store import faults
from tests.retrieval.small_vectors import describe, small_docs
from tests.retrieval.tiny_retriever import MAX_LENGTH, tiny_docs, tiny_towers, write_corpus
from tests.retrieval.writers import NUM_DIMS, NUM_DOCS, SHARD_SIZE, description, embed_small, fake_encode


def files_below(path):
    return {file.relative_to(path): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "v"
    embed_described(lambda: small_docs(NUM_DOCS), out, description(), fake_encode)
    return files_below(out)


@pytest.fixture(scope="module")
def mesh():
    return mesh_from_text("data=2@0-1")


def test_killed_at_failpoints_in_turn_the_bytes_are_those_of_an_uninterrupted_run(tmp_path, uninterrupted):
    for failpoint in ("embed.shard_encoded@2", "commit.after_rename", "embed.before_finish"):
        faults.run_until_killed(embed_small, tmp_path / "v", failpoint=failpoint)
        assert not (tmp_path / "v").exists()
    embed_small(tmp_path / "v")
    assert files_below(tmp_path / "v") == uninterrupted
    assert [p.name for p in tmp_path.iterdir()] == ["v"]


@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, 3, 5, 6])
@pytest.mark.parametrize(
    "name",
    [
        "embed.shard_encoded",
        "commit.draft_opened",
        "arrays.before_write",
        "commit.before_fsync",
        "commit.after_fsync",
        "commit.before_manifest",
        "commit.manifest_written",
        "commit.before_rename",
        "commit.after_rename",
        "commit.acknowledged",
    ],
)
def test_killed_at_any_failpoint(tmp_path, uninterrupted, name, nth):
    num_passes = 5 if name.startswith(("embed.", "arrays.")) else 6
    faults.run_until_killed(embed_small, tmp_path / "v", failpoint=f"{name}@{min(nth, num_passes)}")
    embed_small(tmp_path / "v")
    assert files_below(tmp_path / "v") == uninterrupted


@pytest.mark.slow
def test_killed_at_random_times(tmp_path, uninterrupted):
    rng = np.random.default_rng(0)
    for _ in range(20):
        faults.run_and_kill_after(embed_small, tmp_path / "v", 0.1, delay_s=float(rng.uniform(0.5, 3)))
        assert not (tmp_path / "v").exists() or files_below(tmp_path / "v") == uninterrupted
    embed_small(tmp_path / "v")
    assert files_below(tmp_path / "v") == uninterrupted


def test_what_is_there_is_not_computed_again(tmp_path):
    calls = []

    def encode(texts):
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fake_encode(texts)

    def embed():
        return embed_described(
            lambda: small_docs(NUM_DOCS),
            tmp_path / "v",
            description(),
            encode,
            on_shard=lambda *done: told.append(done),
        )

    told = []
    with pytest.raises(KeyboardInterrupt):
        embed()
    assert told == [(1, 5, False), (2, 5, False)]
    assert not (tmp_path / "v").exists()
    first = embed()
    assert calls == [5, 5, 5, 5, 5, 3]
    assert told[2:] == [(1, 5, True), (2, 5, True), (3, 5, False), (4, 5, False), (5, 5, False)]
    assert embed().manifest.identity == first.manifest.identity
    assert len(calls) == 6


def test_another_job_in_the_same_place_is_refused(tmp_path):
    docs, out = small_docs(NUM_DOCS), tmp_path / "v"

    def broken(texts):
        raise MemoryError

    with pytest.raises(MemoryError):
        embed_described(lambda: docs, out, description(), broken)
    other = describe(docs, NUM_DIMS, SHARD_SIZE, name="b")
    with pytest.raises(UsageError, match=r"model is .*choose another --out"):
        embed_described(lambda: docs, out, other, fake_encode)
    embed_described(lambda: docs, out, description(), fake_encode)
    before = files_below(out)
    with pytest.raises(UsageError, match=r"model is .*choose another --out"):
        embed_described(lambda: docs, out, other, fake_encode)
    assert files_below(out) == before


def test_a_corpus_that_changes_while_it_is_read_is_noticed(tmp_path):
    changed = [*small_docs(NUM_DOCS - 1), tiny_docs(1)[0]]
    with pytest.raises(DataError, match="changed while it was read"):
        embed_described(lambda: changed, tmp_path / "v", description(), fake_encode)
    vectors = embed_described(lambda: small_docs(NUM_DOCS), tmp_path / "v", description(), fake_encode)
    assert vectors.read_ids() == [doc.id for doc in small_docs(NUM_DOCS)]


def test_an_empty_corpus_is_refused(tmp_path):
    with pytest.raises(DataError, match="corpus is empty"):
        embed_described(list, tmp_path / "v", describe([], NUM_DIMS, 5), fake_encode)


def test_a_corpus_with_a_real_encoder(tmp_path, mesh):
    corpus = write_corpus(tmp_path / "corpus", num_docs=30)
    towers = tiny_towers()
    vectors = embed_corpus(towers, corpus, tmp_path / "v", mesh, shard_size=16)
    docs = list(corpus.docs())
    alone = encode_texts(towers.document, [docs[17].passage], mesh, compute_dtype="float32").vectors
    np.testing.assert_allclose(vectors.read()[17], alone[0], atol=1e-5)
    assert vectors.read_ids() == [doc.id for doc in docs]
    assert vectors.description.contract == towers.contract
    num_words = [len(doc.passage.split()) for doc in docs]
    assert vectors.manifest.counts["truncated"] >= sum(n > MAX_LENGTH for n in num_words) > 0
    assert vectors.manifest.counts["truncated_share"] == vectors.manifest.counts["truncated"] / 30
    with pytest.raises(UsageError, match="compute_dtype is"):
        embed_corpus(towers, corpus, tmp_path / "v", mesh, shard_size=16, compute_dtype="bfloat16")
    with pytest.raises(UsageError, match="mesh is"):
        embed_corpus(towers, corpus, tmp_path / "v", mesh_from_text(""), shard_size=16)

    def interrupt(done, total, was_there):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_corpus(towers, corpus, tmp_path / "again", mesh, shard_size=16, on_shard=interrupt)
    again = embed_corpus(towers, BeirFolder.open(tmp_path / "corpus"), tmp_path / "again", mesh, shard_size=16)
    assert again.manifest.identity == vectors.manifest.identity == open_vectors(tmp_path / "v").manifest.identity
