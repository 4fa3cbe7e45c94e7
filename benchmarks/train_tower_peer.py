"""The side of sentence-transformers in benchmarks/train_tower.py; runs in the peers' environment.

Requests and answers are those of train_tower_requests.py. bfloat16 is torch's autocast: weights and optimizer stay
float32.
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from train_tower_requests import answer, tokens

SCALE = 20.0  # 1 / .05


class Trained:
    """The model with an optimizer of its own, and its one batch."""

    def __init__(self, setting: Mapping[str, Any], dtype: str) -> None:
        self._autocast = dtype == "bfloat16"
        self._model = SentenceTransformer(setting["model"], device="cpu").train()
        for module in self._model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        chunk = setting["chunk_texts"]
        self._loss = (
            MultipleNegativesRankingLoss(self._model, scale=SCALE)
            if chunk is None
            else CachedMultipleNegativesRankingLoss(self._model, scale=SCALE, mini_batch_size=chunk)
        )
        parameters = self._model.parameters()
        self._optimizer = torch.optim.AdamW(parameters, lr=2e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
        self._features = [
            {"input_ids": torch.from_numpy(ids), "attention_mask": torch.ones(ids.shape, dtype=torch.int64)}
            for ids in tokens(setting)
        ]

    def run(self, num_steps: int) -> float:
        """Makes so many steps and returns the last one's loss."""
        for _ in range(num_steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
                # The models write their results into the dict that they are given.
                loss = self._loss([dict(features) for features in self._features], None)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        return float(loss)


def main() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    answer(Trained)


if __name__ == "__main__":
    main()
