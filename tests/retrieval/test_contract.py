"""Embedding contracts: who may search whose vectors, and what the refusal says."""

import dataclasses

import pytest

from jaxscale import typed_json
from jaxscale.errors import UsageError
from retrieval.contract import EmbeddingContract, EncoderIdentity, found_space


def identity(side="query", **changes):
    fields = {"sha256": "a" * 64, "prefix": "", "pooling": "mean", "max_length": 32} | changes
    return EncoderIdentity(side=side, **fields)


def contract(**changes):
    fields = {
        "num_dims": 8,
        "normalized": True,
        "score": "cosine",
        "encoders": (identity("query"), identity("document", sha256="b" * 64)),
    }
    return found_space(**(fields | changes))


def test_listed_encoders_speak_it():
    contract().require_speaks(identity("query"))
    contract().require_speaks(identity("document", sha256="b" * 64))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prefix": "query: "}, "prefix='query: ', expected ''"),
        ({"pooling": "cls"}, "pooling='cls', expected 'mean'"),
        ({"max_length": 64}, "max_length=64, expected 32"),
        ({"sha256": "c" * 64}, "its weights or its tokenizer are others: sha256 cccccccccccc, expected aaaaaaaaaaaa"),
    ],
)
def test_another_encoder_is_refused_with_what_differs(changes, said):
    with pytest.raises(UsageError, match="does not speak the embedding space") as refusal:
        contract().require_speaks(identity("query", **changes))
    assert said in str(refusal.value)


def test_an_encoder_of_the_other_side_is_refused():
    """The document tower of a pair with two towers must not encode queries."""
    with pytest.raises(UsageError, match="this query encoder does not speak"):
        contract().require_speaks(identity("query", sha256="b" * 64))


def test_a_space_without_encoders_of_a_side_says_so():
    only_documents = contract(encoders=(identity("document"),))
    with pytest.raises(UsageError, match="has no query encoder"):
        only_documents.require_speaks(identity("query"))


def test_an_encoder_that_joins_speaks_the_same_space():
    student = identity("query", sha256="d" * 64, max_length=16)
    founded = contract()
    joined = founded.joined_by(student)
    joined.require_speaks(student)
    joined.require_speaks(identity("query"))
    assert joined.space == founded.space
    assert joined.joined_by(student) == joined
    assert joined.last_of("query") == student
    assert joined.joined_by(identity("query")).last_of("query") == identity("query")
    with pytest.raises(UsageError, match="does not speak"):
        founded.require_speaks(student)


def test_one_that_joined_after_the_vectors_were_made_speaks_by_its_own_contract():
    student = identity("query", sha256="d" * 64)
    founded = contract()
    founded.require_speaks(student, joined=founded.joined_by(student))
    with pytest.raises(UsageError, match="does not speak"):
        founded.require_speaks(student, joined=founded)
    with pytest.raises(UsageError, match="does not speak"):
        founded.require_speaks(student, joined=contract(score="dot").joined_by(student))
    forged = dataclasses.replace(founded.joined_by(student), num_dims=9)
    with pytest.raises(UsageError, match="two embedding spaces: num_dims is 9, expected 8"):
        founded.require_speaks(student, joined=forged)


def test_the_id_names_all_that_founds_the_space():
    variants = [
        contract(),
        contract(num_dims=9),
        contract(normalized=False),
        contract(score="dot"),
        contract(encoders=(identity("query", sha256="c" * 64),)),
    ]
    assert len({variant.space for variant in variants}) == len(variants)
    assert contract().space == contract().space


def test_contracts_of_two_spaces_are_told_apart():
    contract().require_same_space(contract())
    with pytest.raises(UsageError, match="num_dims is 9, expected 8"):
        contract().require_same_space(contract(num_dims=9))


def test_json_round_trip():
    original = contract()
    values = typed_json.encode(original)
    assert typed_json.decode(EmbeddingContract, values) == original
    assert dataclasses.asdict(original)["encoders"][0]["pooling"] == values["encoders"][0]["pooling"]
