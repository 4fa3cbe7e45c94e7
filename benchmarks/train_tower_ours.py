"""Our side of benchmarks/train_tower.py: the steps of `jaxscale train` without the loop.

Requests and answers are those of train_tower_requests.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from train_tower_requests import answer, tokens

from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.train.job import TrainingIdentity
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from jaxscale.train.placement import place
from jaxscale.train.programs import StepPrograms
from jaxscale.train.state import place_params
from jaxscale.train.step import make_step
from retrieval.towers.batches import planned_batch
from retrieval.towers.loss import Contrastive
from retrieval.towers.pair_loss import PairLoss
from retrieval.towers.pairs import PairData
from retrieval.towers.start import Towers, start_towers


@dataclasses.dataclass(frozen=True)
class RandomPairs:
    """What `place` asks of an objective."""

    computation: PairLoss
    setting: Mapping[str, Any]

    def init_params(self, key: jax.Array) -> Any:
        """For their shapes."""
        return self.computation.init_params(key)

    def loss(self, params: Any, batch: Any, key: jax.Array) -> Any:
        """The job's own."""
        return self.computation.loss(params, batch, key)

    def batch_shapes(self) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """Of the one batch."""
        length = self.setting["length"]
        data = PairData(query_buckets=(length,), document_buckets=(length,))
        return [planned_batch(data, self.setting["num_pairs"])]

    def batch(self) -> dict[str, np.ndarray]:
        """Random tokens; every query has another document."""
        queries, documents = (ids.astype(np.int32) for ids in tokens(self.setting))
        numbers = np.arange(len(queries), dtype=np.int32)[:, None]
        return {
            "query_tokens": queries,
            "query_mask": np.ones(queries.shape, np.bool_),
            "document_tokens": documents[:, None],
            "document_mask": np.ones(documents.shape, np.bool_)[:, None],
            "document_ids": numbers,
            "known_positives": numbers,
        }


class Trained:
    """A model in one number format: its program, its state and its one batch."""

    def __init__(self, setting: Mapping[str, Any], dtype: str) -> None:
        num_pairs, length, chunk = setting["num_pairs"], setting["length"], setting["chunk_pairs"]
        start = start_towers(Towers(init_from=setting["model"], dropout_rate=0.0), (length, length), (), seed=0)
        contrastive = Contrastive(temperature=0.05, cache_chunks=1 if chunk is None else num_pairs // chunk)
        identity = TrainingIdentity(
            num_steps=1,
            global_batch_size=num_pairs,
            optimizer=AdamWConfig(schedule=ScheduleConfig(kind="constant", peak_learning_rate=2e-5)),
            compute_dtype=dtype,
        )
        computation = PairLoss(towers=start.towers, contrastive=contrastive, compute_dtype=dtype)
        objective = RandomPairs(computation, setting)
        placement = place(objective, identity, make_mesh(MeshSpec(), jax.devices()[:1]))
        self._state = place_params(
            {"towers": start.params},
            identity.optimizer.transformation(),
            placement.state_shardings,
            placement.layouts,
        )
        self._batch = placement.put_batch(objective.batch())
        self._programs = StepPrograms(
            make_step(placement.loss, identity),
            state_shardings=placement.state_shardings,
            batch_shardings=placement.batch_shardings,
            metrics_sharding=placement.metrics_sharding,
        )
        self._programs.compile(self._state, self._batch)

    def run(self, num_steps: int) -> float:
        """Makes so many steps and returns the last one's loss."""
        for _ in range(num_steps):
            self._state, metrics = self._programs.run(self._state, self._batch)
        return float(metrics["loss"])


if __name__ == "__main__":
    answer(Trained)
