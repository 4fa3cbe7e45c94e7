import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from jaxscale.errors import DataError, UsageError
from jaxscale.mesh import mesh_from_text
from jaxscale.store.failpoints import VARIABLE
from retrieval.embed import embed_corpus, embed_described
from retrieval.encode import EncodedTexts, encode_texts
from retrieval.formats.beir import BeirFolder
from retrieval.vectors import open_vectors
from tests.retrieval.small_vectors import describe, small_docs
from tests.retrieval.tiny_retriever import MAX_LENGTH, tiny_docs, tiny_towers, write_corpus

NUM_DOCS, NUM_DIMS, SHARD_SIZE = 23, 8, 5


def fake_encode(texts):
    """Vectors that depend on a text and on those beside it, as those of a real batch may."""
    lengths = np.array([len(text) for text in texts], np.float32)
    vectors = np.sin(np.outer(lengths + lengths.sum(), np.arange(1, NUM_DIMS + 1))).astype(np.float32)
    return EncodedTexts(vectors=vectors, num_truncated=int((lengths > 30).sum()))


def description():
    return describe(small_docs(NUM_DOCS), NUM_DIMS, SHARD_SIZE)


# A process that embeds the small corpus with the double above; slow enough for a kill at a random time to hit it.
EMBED = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from retrieval.embed import embed_described
    from tests.retrieval.small_vectors import small_docs
    from tests.retrieval.test_embed import description, fake_encode

    def encode(texts):
        time.sleep(float(sys.argv[2]))
        return fake_encode(texts)

    print("ready", flush=True)
    embed_described(lambda: small_docs(23), Path(sys.argv[1]), description(), encode)
    """
)


def start(out, *, failpoint=None, pause_s=0.0):
    env = os.environ | ({VARIABLE: failpoint} if failpoint else {})
    return subprocess.Popen([sys.executable, "-c", EMBED, str(out), str(pause_s)], env=env, stdout=subprocess.PIPE)


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


def resumed_after(out, failpoints):
    """Embeds into `out`, killed at every failpoint in turn, and then to the end; returns the exit codes."""
    codes = []
    for failpoint in [*failpoints, None]:
        process = start(out, failpoint=failpoint)
        process.communicate(timeout=120)
        codes.append(process.returncode)
    return codes


def test_killed_at_failpoints_in_turn_the_bytes_are_those_of_an_uninterrupted_run(tmp_path, uninterrupted):
    failpoints = ["embed.shard_encoded:kill@2", "commit.before_rename:kill", "embed.before_finish:kill"]
    codes = resumed_after(tmp_path / "v", failpoints)
    assert codes == [-signal.SIGKILL] * len(failpoints) + [0]
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
    codes = resumed_after(tmp_path / "v", [f"{name}:kill@{nth}"])
    num_passes = 5 if name in ("embed.shard_encoded", "arrays.before_write") else 6
    assert codes == [-signal.SIGKILL if nth <= num_passes else 0, 0]
    assert files_below(tmp_path / "v") == uninterrupted


@pytest.mark.slow
def test_killed_at_random_times(tmp_path, uninterrupted):
    rng, num_kills = np.random.default_rng(0), 0
    for attempt in range(30):
        process = start(tmp_path / "v", pause_s=0.05)
        process.stdout.readline()
        time.sleep(float(rng.uniform(0.02, 0.25)) if attempt < 20 else 5)
        process.kill()
        process.communicate()
        if process.returncode == 0:
            break
        num_kills += 1
        assert not (tmp_path / "v").exists() or files_below(tmp_path / "v") == uninterrupted
    assert num_kills > 2
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
    again = embed_corpus(towers, BeirFolder.open(tmp_path / "corpus"), tmp_path / "again", mesh, shard_size=16)
    assert again.manifest.identity == vectors.manifest.identity == open_vectors(tmp_path / "v").manifest.identity
