"""The embedding contract: names a vector space and the encoders that speak it, so that no other one is searched with.

Vectors carry the contract of the retriever that made them. A query encoder may search them only if the contract lists
it; a query tower distilled later into the same space joins it (`EmbeddingContract.joined_by`).
"""

import dataclasses
from typing import Literal

from jaxscale import typed_json
from jaxscale.errors import UsageError

Score = Literal["cosine", "dot"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderIdentity:
    """Which encoder, exactly.

    Attributes:
      side: what it encodes.
      sha256: the hash of its weights, tokenizer and configuration (`fingerprint.encoder_sha256`).
      prefix: text put before every text.
      pooling: how hidden states become one vector.
      max_length: tokens kept of a text.
    """

    side: Literal["query", "document"]
    sha256: str
    prefix: str
    pooling: Literal["mean", "cls", "last"]
    max_length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingContract:
    """A vector space, by name, and those who speak it.

    Attributes:
      space: the space's id: a hash of what founded it (`found_space`); it outlives encoders that join.
      num_dims: dims of every vector (E).
      normalized: whether every vector has length 1.
      score: how a query's vector and a document's are compared.
      encoders: all encoders that speak it.
    """

    space: str
    num_dims: int
    normalized: bool
    score: Score
    encoders: tuple[EncoderIdentity, ...]

    def require_speaks(self, encoder: EncoderIdentity, *, joined: "EmbeddingContract | None" = None) -> None:
        """Refuses an encoder that neither this contract nor a later one of the same space lists for its side.

        Args:
          encoder: who wants to write or search vectors of this space.
          joined: the contract that came with the encoder: one that joined the space after the vectors were made is
            listed there alone.

        Raises:
          UsageError: saying in what it differs from those that are listed.
        """
        known = [e for e in self.encoders if e.side == encoder.side]
        if encoder in known:
            return
        if joined is not None and joined.space == self.space and encoder in joined.encoders:
            self.require_same_space(joined)
            return
        if not known:
            raise UsageError(f"the embedding space {self.space[:12]} has no {encoder.side} encoder; got {encoder}")
        nearest = min(known, key=lambda e: len(_differences(encoder, e)))
        raise UsageError(
            f"this {encoder.side} encoder does not speak the embedding space {self.space[:12]}: "
            + "; ".join(_differences(encoder, nearest))
            + "; use the retriever that made the vectors, or embed the corpus again with this one"
        )

    def require_same_space(self, other: "EmbeddingContract") -> None:
        """Refuses a contract of another space.

        Raises:
          UsageError: saying in what the two differ.
        """
        names = ("space", "num_dims", "normalized", "score")
        differences = [
            f"{name} is {getattr(other, name)!r}, expected {getattr(self, name)!r}"
            for name in names
            if getattr(self, name) != getattr(other, name)
        ]
        if differences:
            raise UsageError("these are two embedding spaces: " + "; ".join(differences))

    def joined_by(self, encoder: EncoderIdentity) -> "EmbeddingContract":
        """The same space with one more encoder that speaks it, which is then the last of its side."""
        if self.last_of(encoder.side) == encoder:
            return self
        others = (e for e in self.encoders if e != encoder)
        return dataclasses.replace(self, encoders=(*others, encoder))

    def last_of(self, side: Literal["query", "document"]) -> EncoderIdentity | None:
        """The encoder of a side that came last; None where there is none."""
        return next((e for e in reversed(self.encoders) if e.side == side), None)


def found_space(
    *, num_dims: int, normalized: bool, score: Score, encoders: tuple[EncoderIdentity, ...]
) -> EmbeddingContract:
    """The contract of a new space, whose id is a hash of all that founds it.

    Args:
      num_dims: dims of every vector (E).
      normalized: whether every vector has length 1.
      score: how vectors are compared.
      encoders: those that speak it from the start.
    """
    founders = {
        "num_dims": num_dims,
        "normalized": normalized,
        "score": score,
        "encoders": [typed_json.encode(e) for e in encoders],
    }
    return EmbeddingContract(
        space=typed_json.fingerprint(founders),
        num_dims=num_dims,
        normalized=normalized,
        score=score,
        encoders=encoders,
    )


def _differences(got: EncoderIdentity, expected: EncoderIdentity) -> list[str]:
    """What differs, the settings first: where one of them does, the hash says nothing more."""
    names = [f.name for f in dataclasses.fields(EncoderIdentity) if f.name not in ("side", "sha256")]
    found = [
        f"{name}={getattr(got, name)!r}, expected {getattr(expected, name)!r}"
        for name in names
        if getattr(got, name) != getattr(expected, name)
    ]
    if found or got.sha256 == expected.sha256:
        return found
    return [f"its weights or its tokenizer are others: sha256 {got.sha256[:12]}, expected {expected.sha256[:12]}"]
