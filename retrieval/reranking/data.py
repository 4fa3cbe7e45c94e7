"""What a re-ranker trains on, and which candidates its dev metric orders: what a job says of them."""

import dataclasses
from typing import Literal

from jaxscale.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerankerData:
    """Where queries and their candidates come from and how long their texts may be.

    Attributes:
      folder: a BEIR folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.
      split: the split whose (query, relevant document) pairs are trained on.
      dev_split: the split whose queries tell the best checkpoint.
      hard_negatives: a folder that `jaxscale mine` wrote, or a jsonl file of `{"query_id": ..., "doc_ids": [...]}`;
        empty: documents drawn out of the whole corpus, which are much easier.
      num_negatives: documents that a query's relevant one is to be told from at a step.
      hard_negative_draws: which of a query's they are: others at every `step`, or dealt out over `epoch`s, as in
        `retrieval.towers.pairs.PairData`.
      buckets: padded lengths of query and document together, in tokens, rising; the last is the longest text kept.
      dev_run: a TREC run of dev queries, whose first documents are re-ranked for the dev metric. Empty: each query's
        relevant documents and the same others for all, which is easier than what a first stage finds.
      num_dev_queries: dev queries, at most; None: all.
      num_dev_candidates: documents of each that are ordered, at most.
    """

    folder: str = ""
    split: str = "train"
    dev_split: str = "dev"
    hard_negatives: str = ""
    num_negatives: int = 7
    hard_negative_draws: Literal["step", "epoch"] = "step"
    buckets: tuple[int, ...] = (160,)
    dev_run: str = ""
    num_dev_queries: int | None = 128
    num_dev_candidates: int = 32

    def __post_init__(self) -> None:
        buckets = self.buckets
        if not buckets or buckets[0] < 1 or list(buckets) != sorted(set(buckets)):
            raise UsageError(f"buckets={buckets} must be lengths in tokens, at least 1, each above the one before")
        if self.num_negatives < 1:
            raise UsageError(f"num_negatives={self.num_negatives} must be at least 1; a loss over one document is 0")
        if self.num_dev_queries is not None and self.num_dev_queries < 1:
            raise UsageError(f"num_dev_queries={self.num_dev_queries} must be at least 1, or None for all there are")
        if self.num_dev_candidates < 2:
            raise UsageError(f"num_dev_candidates={self.num_dev_candidates} must be at least 2, or there is no order")

    @property
    def max_length(self) -> int:
        """Tokens kept of query and document together."""
        return self.buckets[-1]
