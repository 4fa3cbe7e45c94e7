"""Our side of benchmarks/train_tower.py: the steps of `jaxscale train` without the loop.

Requests and answers are those of train_tower_requests.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from steps_ours import Steps
from train_tower_requests import answer, tokens

from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.train.job import TrainingIdentity
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from jaxscale.train.placement import place
from jaxscale.train.state import place_params
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


def start(setting: Mapping[str, Any], dtype: str) -> Steps:
    """The model in one number format."""
    num_pairs, length, chunk = setting["num_pairs"], setting["length"], setting["chunk_texts"]
    if chunk is not None and 2 * num_pairs % chunk:
        raise SystemExit(f"--chunk-texts {chunk} does not divide the {2 * num_pairs} texts of {num_pairs} pairs")
    started = start_towers(Towers(init_from=setting["model"], dropout_rate=0.0), (length, length), (), seed=0)
    identity = TrainingIdentity(
        num_steps=1,
        global_batch_size=num_pairs,
        optimizer=AdamWConfig(schedule=ScheduleConfig(kind="constant", peak_learning_rate=2e-5)),
        compute_dtype=dtype,
    )
    # A chunk holds texts of both sides. Where memory is what counts, layers keep the results of their products alone.
    computation = PairLoss(
        towers=started.towers,
        contrastive=Contrastive(temperature=0.05, cache_chunks=1 if chunk is None else 2 * num_pairs // chunk),
        compute_dtype=dtype,
        remat=False if chunk is None else "matmuls",
    )
    objective = RandomPairs(computation, setting)
    placement = place(objective, identity, make_mesh(MeshSpec(), jax.devices()[:1]))
    state = place_params(
        {"towers": started.params},
        identity.optimizer.transformation(),
        placement.state_shardings,
        placement.layouts,
    )
    return Steps(placement, identity, state, objective.batch())


if __name__ == "__main__":
    answer(start)
