"""Fewer dims: the first of the vectors, scaled again, in a space of their own that says how many there are."""

import jax
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec, make_mesh
from retrieval.encode import encode_texts
from retrieval.towers.fewer_dims import first_dims
from retrieval.towers.loading import EncoderOverrides, load_towers
from retrieval.towers.retriever_folder import save_retriever
from tests.retrieval.towers.test_sentence_transformers_folder import towers

TEXTS = ["some words", "more words to make pieces of", "pieces"]


def vectors(encoder):
    return encode_texts(encoder, TEXTS, make_mesh(MeshSpec(), jax.devices()[:1])).vectors


@pytest.mark.parametrize(("projection_dim", "score"), [(None, "cosine"), (6, "dot")])
def test_vectors_are_the_first_dims_scaled_again(projection_dim, score, tmp_path):
    whole = towers(projection_dim=projection_dim, score=score)
    save_retriever(tmp_path / "retriever", whole)
    cut = load_towers(tmp_path / "retriever", overrides=EncoderOverrides(num_dims=4))
    assert (cut.contract.num_dims, cut.contract.score) == (4, score)
    assert cut.contract.space != whole.contract.space
    for side in ("query", "document"):
        expected = vectors(whole.encoder(side))[:, :4]
        if score == "cosine":
            expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(vectors(cut.encoder(side)), expected, atol=1e-6)
        cut.contract.require_speaks(cut.identity(side))
        with pytest.raises(UsageError, match="does not speak the embedding space"):
            cut.contract.require_speaks(whole.identity(side))


def test_all_of_the_dims_are_the_retriever_itself_and_more_there_are_not():
    whole = towers()
    assert first_dims(whole, 8) is whole
    for num_dims in (0, 9):
        with pytest.raises(UsageError, match=f"num_dims={num_dims} must be between 1 and the 8 dims"):
            first_dims(whole, num_dims)
