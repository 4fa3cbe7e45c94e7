"""A retriever whose vectors are the first dims of another's: another space, searched faster and kept in less room.

Reference: Kusupati et al. 2022, Matryoshka Representation Learning, section 3, https://arxiv.org/abs/2205.13147
"""

import dataclasses

import numpy as np

from jaxscale.errors import UsageError
from retrieval.towers.encoder import Encoder
from retrieval.towers.retriever_folder import LoadedTowers, join_towers


def first_dims(towers: LoadedTowers, num_dims: int) -> LoadedTowers:
    """The towers whose vectors are the first `num_dims` of these, scaled to length 1 again where these are.

    What cuts is the projection: narrower, or where there is none one that leaves the first dims as they are. So the
    contract, the fingerprint and every format say what the towers are without a word for it.

    Args:
      towers: a retriever; good at fewer dims if it was trained for that.
      num_dims: at least 1, at most the dims of its vectors.

    Raises:
      UsageError: the vectors have fewer dims.
    """
    if not 1 <= num_dims <= towers.contract.num_dims:
        raise UsageError(
            f"num_dims={num_dims} must be between 1 and the {towers.contract.num_dims} dims of the model's vectors"
        )
    if num_dims == towers.contract.num_dims:
        return towers
    query, document = (_cut(encoder, num_dims) for encoder in (towers.query, towers.document))
    return join_towers(query=query, document=document, shared=towers.shared, score=towers.contract.score)


def _cut(encoder: Encoder, num_dims: int) -> Encoder:
    if encoder.config.projection_dim is None:
        kernel = np.eye(encoder.config.num_dims, num_dims, dtype=np.float32)
    else:
        kernel = np.ascontiguousarray(np.asarray(encoder.params["projection"]["kernel"])[:, :num_dims])
    return dataclasses.replace(
        encoder,
        config=dataclasses.replace(encoder.config, projection_dim=num_dims),
        params={**encoder.params, "projection": {"kernel": kernel}},
    )
