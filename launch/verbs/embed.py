"""`jaxscale embed`: a corpus becomes committed vectors; the same command again goes on where a kill cut it off."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxscale.mesh import mesh_from_text
from retrieval.embed import DEFAULT_SHARD_SIZE, embed_corpus, print_progress
from retrieval.encode import ComputeDtype
from retrieval.formats.beir import BeirFolder
from retrieval.towers.loading import EncoderOverrides, load_towers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Encodes every passage of a corpus with a retriever's document encoder.

    The vectors are written shard by shard. After a kill the same command keeps the finished shards and encodes the
    rest; the result is, byte for byte, that of a run that was not killed. Where the vectors are there already,
    nothing is computed.

    Example: jaxscale embed --model runs/small --corpus corpus --out vectors
    """

    model: Path
    """A retriever, a model, a training run, or a Hugging Face folder of an encoder or a decoder."""
    corpus: Path
    """A BEIR folder."""
    out: Path
    """The directory to make."""
    mesh: str = ""
    """Devices that share every batch, e.g. data=8; all of them when empty."""
    shard_size: int = DEFAULT_SHARD_SIZE
    """Documents a shard: what a kill can cost."""
    compute_dtype: ComputeDtype = "float32"
    """Of the encoder's products; they are accumulated in float32."""
    encoder: EncoderOverrides = dataclasses.field(default_factory=EncoderOverrides)
    """How to use a model otherwise than its own settings say; search with the same."""

    def run(self) -> dict[str, Any]:
        """Writes the vectors and says what they are."""
        towers = load_towers(self.model, overrides=self.encoder)
        vectors = embed_corpus(
            towers,
            BeirFolder.open(self.corpus, check="full"),
            self.out,
            mesh_from_text(self.mesh),
            shard_size=self.shard_size,
            compute_dtype=self.compute_dtype,
            on_shard=print_progress,
        )
        counts = vectors.manifest.counts
        print(f"{self.out}: {vectors.num_rows:,} vectors of {vectors.num_dims} dims in {counts['shards']} shards")
        print(
            f"documents cut off at the encoder's length limit: {counts['truncated']} ({counts['truncated_share']:.1%})"
        )
        return {
            "out": str(self.out),
            "identity": vectors.manifest.identity,
            "counts": counts,
            "parents": vectors.manifest.parents,
            "space": vectors.description.contract.space,
        }
