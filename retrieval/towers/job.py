"""The job of training a dual tower: pure data, checked before anything compiles."""

import dataclasses
from pathlib import Path

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.nn.transformer import TransformerConfig
from jaxscale.train.job import Operation, TrainingIdentity
from retrieval.contract import Score
from retrieval.towers.encoder import Pooling
from retrieval.towers.loss import Contrastive
from retrieval.towers.objective import DualTowerObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Towers:
    """The two towers.

    Attributes:
      init_from: a model to start from: a model folder, a retriever folder or a Hugging Face folder of the BERT family;
        empty starts from random weights and a tokenizer trained on the corpus.
      transformer: the network where `init_from` is empty; its `vocab_size` is also the size asked of the tokenizer.
      shared: one set of weights for both sides, or one for each.
      pooling: how a text's hidden states become one vector.
      score: `cosine` compares vectors of length 1, `dot` compares them as they are.
      projection_dim: dims of a linear map after pooling; None for none.
      query_prefix: text put before every query.
      document_prefix: text put before every document.
    """

    init_from: str = ""
    transformer: TransformerConfig | None = None
    shared: bool = True
    pooling: Pooling = "mean"
    score: Score = "cosine"
    projection_dim: int | None = None
    query_prefix: str = ""
    document_prefix: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairData:
    """Where the pairs come from and how long their texts may be.

    Attributes:
      folder: a BEIR folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.
      split: the split whose (query, relevant document) pairs are trained on.
      dev_split: the split whose queries tell the best checkpoint.
      hard_negatives: a jsonl file of `{"query_id": ..., "doc_ids": [...]}`; empty for none.
      num_hard_negatives: documents taken of it per query and step.
      query_buckets: padded lengths of a batch of queries, in tokens, rising; the last is the longest query kept.
      document_buckets: the same of documents.
      num_dev_queries: dev queries that are searched while training, at most.
      num_dev_documents: documents they are searched among: their relevant ones, and others up to this number.
    """

    folder: str = ""
    split: str = "train"
    dev_split: str = "dev"
    hard_negatives: str = ""
    num_hard_negatives: int = 0
    query_buckets: tuple[int, ...] = (32,)
    document_buckets: tuple[int, ...] = (128,)
    num_dev_queries: int = 256
    num_dev_documents: int = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class DualTowerJob:
    """All that says what a training run of two towers is, and how it is operated.

    Attributes:
      towers: the encoders.
      data: the pairs.
      contrastive: the loss.
      training: seed, steps, batch, optimizer: with the above, what the run is.
      operation: mesh, checkpoints, logging: how it is run.
    """

    towers: Towers
    data: PairData
    contrastive: Contrastive
    training: TrainingIdentity
    operation: Operation

    def check(self, mesh: MeshSpec) -> None:
        """Checks what no field can check alone; `mesh` is the resolved mesh the job will run on.

        Raises:
          UsageError: naming the field, what it is and what it may be.
        """
        raise NotImplementedError

    def objective(self) -> DualTowerObjective:
        """Reads the data and the starting weights and returns what is trained.

        Its `identity` is this job as JSON values with every path replaced by a hash of what lies there, and
        `operation` left out: two runs are the same run exactly if their identities are equal. Its `starting_params`
        are the weights of `init_from`, or None.

        Raises:
          DataError: the data or the starting model is missing or malformed.
          UsageError: a path is not given.
        """
        raise NotImplementedError


def _require_folder(path: str, flag: str) -> Path:
    if not path:
        raise UsageError(f"{flag} is not given; add `{flag} DIR`")
    return Path(path)
