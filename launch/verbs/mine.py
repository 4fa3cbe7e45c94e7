"""`jaxscale mine`: a retriever and a corpus become committed hard negatives, to train the next retriever with."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxscale.mesh import mesh_from_text
from jaxscale.store import commit
from retrieval.encode import ComputeDtype
from retrieval.towers import negatives_folder
from retrieval.towers.loading import EncoderOverrides, load_towers
from retrieval.towers.mine_corpus import Miner
from retrieval.towers.mining import RULES, Mining
from retrieval.towers.pairs import read_source
from retrieval.vectors import open_vectors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Searches a corpus exactly for every training query, and keeps what scores high but is not relevant.

    Known positives, their near-duplicates, and documents that score too much like them are dropped, each by a rule
    with its count. `train` takes the folder as --data.hard-negatives.

    Example: jaxscale mine --model runs/small --corpus corpus --out negatives --depth 200 --num-negatives 8

    Attributes:
      model: a retriever, a model, a training run, or a Hugging Face folder of an encoder or a decoder.
      corpus: a BEIR folder.
      out: the folder to make.
      split: whose queries are mined for.
      vectors: the corpus's vectors, of this model; encoded along the way where none are named.
      mesh: devices that share every batch and the search, e.g. data=8; all of them when empty.
      compute_dtype: of the encoders' products; they are accumulated in float32.
      encoder: how to use a model otherwise than its own settings say.
      mining: the rules.
    """

    model: Path
    corpus: Path
    out: Path
    split: str = "train"
    vectors: Path | None = None
    mesh: str = ""
    compute_dtype: ComputeDtype = "float32"
    encoder: EncoderOverrides = dataclasses.field(default_factory=EncoderOverrides)
    mining: Annotated[Mining, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Mining)

    def run(self) -> dict[str, Any]:
        """Writes the negatives and says what was dropped."""
        commit.check_place(self.out, format=negatives_folder.FORMAT, replace=False)
        towers = load_towers(self.model, overrides=self.encoder)
        miner = Miner(
            towers=towers,
            mining=self.mining,
            split=self.split,
            compute_dtype=self.compute_dtype,
            vectors=None if self.vectors is None else open_vectors(self.vectors),
        )
        source = read_source(self.corpus, self.split, self.split)
        manifest = miner.mine_to(self.out, source, mesh_from_text(self.mesh)).manifest
        counts = manifest.counts
        print(f"{self.out}: {counts['negatives']:,} negatives of {counts['queries']:,} queries")
        dropped = ", ".join(f"{rule} {counts[f'dropped.{rule}']:,}" for rule in RULES)
        print(f"of {counts['candidates']:,} candidates dropped: {dropped}")
        print(
            f"queries with too few left: {counts['queries_short']:,}; filled from beyond the depth: "
            f"{counts['filled']:,}; still lacking some: {counts['queries_lacking']:,}"
        )
        return {"out": str(self.out), "identity": manifest.identity, "counts": counts, "parents": manifest.parents}
