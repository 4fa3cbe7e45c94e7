"""A family of dual towers: one job in several sizes, on several amounts of data; pure data, checked before training."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.nn.config import TransformerConfig
from jaxscale.train.job import TrainingIdentity
from retrieval.towers.job import DualTowerJob
from retrieval.towers.sources import clusters_sha256
from retrieval.towers.start import Towers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """The depth and the width of a tower."""

    num_layers: int
    width: int

    def __str__(self) -> str:
        return f"l{self.num_layers}-w{self.width}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FamilyRun:
    """One member of a family: a size, and how many pairs it learns from."""

    size: Size
    num_pairs: int

    def __str__(self) -> str:
        return f"{self.size}-p{self.num_pairs}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerFamily:
    """A job of two towers that is trained in every size on every amount of data.

    Attributes:
      job: what the runs have in common. Its transformer gives the proportions: heads keep their width, and the MLP
        its ratio to the model's. Its schedule is stretched to the length of each run.
      num_layers: of each size.
      widths: d_model of each size, beside `num_layers`.
      num_pairs: amounts of data: different labelled pairs, rising.
      num_epochs: passes of each run over its pairs.
      num_queries: dev queries that the contrastive entropy is the mean over, at most.
      num_negatives: of each query.
      num_pool_documents: documents that the negatives are drawn from, at most.
    """

    job: DualTowerJob
    num_layers: tuple[int, ...]
    widths: tuple[int, ...]
    num_pairs: tuple[int, ...]
    num_epochs: int = 4
    num_queries: int = 1000
    num_negatives: int = 256
    num_pool_documents: int = 4096

    def __post_init__(self) -> None:
        for name in ("num_epochs", "num_queries", "num_negatives", "num_pool_documents"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.widths or len(self.widths) != len(self.num_layers):
            raise UsageError(
                f"widths={self.widths} and num_layers={self.num_layers} go together; give one of each a size"
            )
        for name in ("widths", "num_layers"):
            if min(getattr(self, name)) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        if len(set(self.sizes)) < len(self.sizes):
            raise UsageError(f"sizes: {', '.join(map(str, self.sizes))} names one twice; give each once")
        if not self.num_pairs or self.num_pairs[0] < 1 or list(self.num_pairs) != sorted(set(self.num_pairs)):
            raise UsageError(f"num_pairs={self.num_pairs} must be numbers of pairs, each above the one before")

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes, in the order in which they were given."""
        return tuple(
            Size(num_layers=depth, width=width) for depth, width in zip(self.num_layers, self.widths, strict=True)
        )

    @property
    def runs(self) -> tuple[FamilyRun, ...]:
        """Every size on every amount of data."""
        return tuple(FamilyRun(size=size, num_pairs=number) for size in self.sizes for number in self.num_pairs)

    def check(self, mesh: MeshSpec) -> None:
        """Checks what no field can check alone, for every run.

        Args:
          mesh: the resolved mesh that the runs will be on.

        Raises:
          UsageError: naming the field, what it is and what it may be.
        """
        data, operation = self.job.data, self.job.operation
        if not data.folder:
            raise UsageError("job.data.folder is not given; add `--job.data.folder DIR`, a BEIR folder with the pairs")
        if operation.best_metric:
            raise UsageError(
                f"job.operation.best_metric={operation.best_metric!r} must be empty: the law is of runs trained "
                "to their end, not of checkpoints chosen by another measure"
            )
        for name in ("init_from", "query_init_from", "query_transformer"):
            if value := getattr(self.job.towers, name):
                raise UsageError(
                    f"job.towers.{name}={value!r}: a family starts from random weights, as a model has one size, and "
                    "both towers have the same; give job.towers.transformer alone"
                )
        for name in ("crops_per_document", "num_hard_negatives"):
            if getattr(data, name):
                raise UsageError(
                    f"job.data.{name}={getattr(data, name)} must be 0: the law's D counts labelled pairs, and nothing "
                    "else may be learned from"
                )
        if self.job.contrastive.learn_temperature:
            raise UsageError(
                "job.contrastive.learn_temperature=True: entropies of runs at different temperatures can't be "
                "compared; use a fixed one"
            )
        for size in self.sizes:
            dataclasses.replace(self.job, towers=self.towers(size)).check(mesh)
        if self.num_pairs[0] < self.job.training.global_batch_size:
            raise UsageError(
                f"num_pairs={self.num_pairs}: the least must be at least "
                f"job.training.global_batch_size={self.job.training.global_batch_size}, or a pair is its own negative"
            )
        for run in self.runs:
            self.training(run)

    def transformer(self, size: Size) -> TransformerConfig:
        """The network of a size.

        Raises:
          UsageError: the width is no multiple of a head's, or the job has no transformer.
        """
        base = self.job.towers.transformer
        if base is None:
            raise UsageError("job.towers.transformer is not given; a family needs one for its proportions")
        if size.width % base.head_dim or (size.width // base.head_dim * base.num_kv_heads) % base.num_heads:
            raise UsageError(
                f"widths: {size.width} must be a multiple of the transformer's head_dim={base.head_dim} with a whole "
                "number of key-value heads"
            )
        num_heads = size.width // base.head_dim
        return dataclasses.replace(
            base,
            num_layers=size.num_layers,
            d_model=size.width,
            num_heads=num_heads,
            num_kv_heads=num_heads * base.num_kv_heads // base.num_heads,
            d_ff=max(1, round(size.width * base.d_ff / base.d_model)),
        )

    def towers(self, size: Size) -> Towers:
        """The job's towers with the network of a size.

        Raises:
          UsageError: as `transformer`.
        """
        return dataclasses.replace(self.job.towers, transformer=self.transformer(size))

    def num_params(self, size: Size) -> int:
        """N: parameters outside the tables of tokens, positions and token types; the projection counts.

        Kaplan et al. 2020, section 2.1, https://arxiv.org/abs/2001.08361, found that laws are cleaner without them.
        """
        transformer, towers = self.transformer(size), self.job.towers
        num_rows = transformer.vocab_size + transformer.type_vocab_size
        num_rows += transformer.max_positions if transformer.positions == "learned" else 0
        projected = 0 if towers.projection_dim is None else towers.projection_dim * size.width
        one = transformer.num_params - num_rows * size.width + projected
        return one if towers.shared else 2 * one

    def training(self, run: FamilyRun) -> TrainingIdentity:
        """The length of a run, and its schedule: the job's, stretched to that length."""
        training = self.job.training
        num_steps = math.ceil(run.num_pairs * self.num_epochs / training.global_batch_size)
        schedule = training.optimizer.schedule
        decay_steps, warmup_steps = (
            round(steps * num_steps / training.num_steps) for steps in (schedule.decay_steps, schedule.warmup_steps)
        )
        stretched = dataclasses.replace(
            schedule, warmup_steps=warmup_steps, decay_steps=max(decay_steps, warmup_steps + 1)
        )
        optimizer = dataclasses.replace(training.optimizer, schedule=stretched)
        return dataclasses.replace(training, num_steps=num_steps, optimizer=optimizer)

    def job_of(self, run: FamilyRun, data: Path, start: Path) -> DualTowerJob:
        """The job of a run.

        Args:
          run: which one.
          data: the folder with the pairs of every amount.
          start: the weights of the size.
        """
        job = dataclasses.replace(
            self.job,
            data=dataclasses.replace(self.job.data, folder=str(data), split=split_name(run.num_pairs)),
            training=self.training(run),
        )
        return job.starting_from(str(start))

    def identity(self, corpus: str) -> dict[str, Any]:
        """All that makes a study what it is, as JSON values.

        Args:
          corpus: a hash of the records.

        Raises:
          DataError: there is no file of clusters where the job names one.
        """
        family = typed_json.encode(self)
        data = family["job"]["data"]
        del family["job"]["operation"], data["folder"]
        if self.job.data.clusters:
            data["clusters"] = clusters_sha256(Path(self.job.data.clusters))
        return {**family, "corpus": corpus}


def split_name(num_pairs: int) -> str:
    """What the split of an amount is called.

    >>> split_name(4096)
    'pairs-4096'
    """
    return f"pairs-{num_pairs}"
