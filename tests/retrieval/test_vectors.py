import json

import numpy as np
import pytest

from jaxscale.errors import DataError, UsageError, VerificationError
from jaxscale.store import commit
from retrieval.records import Doc
from retrieval.vectors import (
    CorpusHash,
    claim_draft,
    open_vectors,
    require_same_description,
    shard_is_complete,
    write_shard,
)
from tests.retrieval.small_vectors import describe, small_docs, unit_rows, write_vectors


def test_what_is_written_is_read(tmp_path):
    rows = unit_rows(0, 25, 6)
    written = write_vectors(tmp_path / "v", rows, shard_size=10)
    assert written.verified
    assert (written.num_rows, written.num_dims, written.description.num_shards) == (25, 6, 3)
    assert written.read_ids() == [doc.id for doc in small_docs(25)]
    np.testing.assert_array_equal(written.read(), rows)
    assert written.manifest.counts == {"rows": 25, "dims": 6, "shards": 3, "truncated": 3, "truncated_share": 3 / 25}
    assert written.manifest.parents == {"model": "a" * 64, "corpus": CorpusHash.of(small_docs(25)).sha256}
    assert json.loads((tmp_path / "v" / "vectors.json").read_text()) == written.manifest.config


def test_opened_by_sizes_alone_it_is_unverified(tmp_path):
    write_vectors(tmp_path / "v", unit_rows(0, 5, 4))
    assert not open_vectors(tmp_path / "v", check="sizes").verified


@pytest.mark.parametrize("name", ["ids.json", "vectors/", "MANIFEST.json"])
def test_one_flipped_bit_is_found_and_its_file_named(tmp_path, name):
    write_vectors(tmp_path / "v", unit_rows(0, 40, 4), shard_size=20)
    files = [f for f in (tmp_path / "v" / "shards" / "00001").rglob("*") if f.is_file()]
    file = max((f for f in files if name.rstrip("/") in f.parts), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.raises(VerificationError, match=file.name):
        open_vectors(tmp_path / "v")


def test_another_format_is_named(tmp_path):
    with commit.draft(tmp_path / "x", format="jaxscale.other", version=1):
        pass
    with pytest.raises(DataError, match=r"holds jaxscale.other, expected jaxscale.vectors"):
        open_vectors(tmp_path / "x")
    with pytest.raises(DataError, match="no committed directory"):
        open_vectors(tmp_path / "nothing")


def test_a_draft_belongs_to_one_description(tmp_path):
    description = describe(small_docs(5), 4, 2)
    claim_draft(tmp_path, description)
    claim_draft(tmp_path, description)
    with pytest.raises(UsageError, match="shard_size is 2, now 3; choose another --out"):
        claim_draft(tmp_path, describe(small_docs(5), 4, 3))
    with pytest.raises(UsageError, match=r"model is .* now"):
        claim_draft(tmp_path, describe(small_docs(5), 4, 2, name="b"))
    with pytest.raises(UsageError, match="contract is not there"):
        require_same_description(tmp_path, None, description)


def test_a_damaged_shard_is_removed_to_be_made_again(tmp_path):
    claim_draft(tmp_path, describe(small_docs(2), 4, 2))
    write_shard(tmp_path, 0, ids=["a", "b"], vectors=unit_rows(0, 2, 4), num_truncated=0)
    assert shard_is_complete(tmp_path, 0)
    assert not shard_is_complete(tmp_path, 1)
    ids = tmp_path / "shards" / "00000" / "ids.json"
    ids.write_text(ids.read_text().replace("b", "c"))
    assert not shard_is_complete(tmp_path, 0)
    assert not ids.exists()


def test_a_vector_that_is_not_finite_is_refused(tmp_path):
    claim_draft(tmp_path, describe(small_docs(2), 4, 2))
    rows = unit_rows(0, 2, 4)
    rows[1, 2] = np.inf
    with pytest.raises(DataError, match="'b' a vector that is not finite"):
        write_shard(tmp_path, 0, ids=["a", "b"], vectors=rows, num_truncated=0)


def test_the_corpus_hash_sees_every_field_and_the_order():
    docs = [Doc("1", "t", "x"), Doc("2", "", "tx")]
    others = [docs[::-1], [Doc("1", "tx", ""), docs[1]], [docs[0], Doc("3", "", "tx")], docs[:1]]
    assert len({CorpusHash.of(docs).sha256, *(CorpusHash.of(other).sha256 for other in others)}) == 5
