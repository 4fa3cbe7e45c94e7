"""Recipes of scaling studies: families of dual towers, for `jaxscale scaling retrieval`."""

from jaxscale.nn.families import bert_config
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from retrieval.scaling.family import TowerFamily
from retrieval.towers.job import DualTowerJob
from retrieval.towers.loss import Contrastive
from retrieval.towers.pairs import PairData
from retrieval.towers.start import Towers


def two_tower_family() -> TowerFamily:
    """Five sizes of shared towers from random weights, up to 0.9 million parameters, on 1,024 to 8,192 pairs.

    Command: jaxscale scaling retrieval two_tower_family --job.data.folder BEIR --out STUDY
    Hardware: 2 CPU cores with bfloat16 dot products.
    Time: 21 min; 8e13 FLOPs of training outside the embeddings, three fifths of them in the largest size.
    Expected: contrastive entropies from 5.59 (smallest) to 2.12 (largest run) on wikinews-qa; the largest run predicted
      2 % off; docs/benchmarks/scaling-family.md has all.
    """
    return TowerFamily(
        job=DualTowerJob(
            towers=Towers(
                transformer=bert_config(
                    num_layers=2,
                    d_model=128,
                    num_heads=4,
                    d_ff=512,
                    vocab_size=8192,
                    max_positions=128,
                    dropout_rate=0.0,
                )
            ),
            data=PairData(query_buckets=(24,), document_buckets=(128,), num_dev_queries=256, num_dev_documents=1024),
            contrastive=Contrastive(temperature=0.05, symmetric=True),
            training=TrainingIdentity(
                num_steps=256,
                global_batch_size=128,
                optimizer=AdamWConfig(
                    schedule=ScheduleConfig(kind="cosine", peak_learning_rate=2e-3, warmup_steps=26, decay_steps=256)
                ),
                compute_dtype="bfloat16",
            ),
            operation=Operation(checkpoint_every_steps=128, keep_last=1),
        ),
        num_layers=(1, 1, 2, 2, 3),
        widths=(32, 64, 64, 128, 160),
        num_pairs=(1024, 2048, 4096, 8192),
    )
