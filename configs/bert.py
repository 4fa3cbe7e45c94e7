"""Recipes of the BERT family. To train one, name its text: `--data.datasets DIR`."""

from jaxscale.nn.families import bert_config
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.language_model import LanguageModelJob
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig


def bert_base() -> LanguageModelJob:
    """BERT base, uncased: 108,891,648 parameters; 131,072 tokens per step, masked tokens predicted.

    Command: jaxscale explain bert_base --mesh data=4,fsdp=2
    Source: Devlin et al. 2018, "BERT", sections 3 and A.2, https://arxiv.org/abs/1810.04805. Scores are computed at
      every position and against the token table; BERT's own output layer and next-sentence task are left out.
    Count: of the published checkpoint, `google-bert/bert-base-uncased`, its pooler of 590,592 left out; the paper says
      110M.
    """
    return LanguageModelJob(
        transformer=bert_config(
            num_layers=12, d_model=768, num_heads=12, d_ff=3072, vocab_size=30522, max_positions=512
        ),
        sequence_length=512,
        training=TrainingIdentity(
            num_steps=1_000_000,
            global_batch_size=256,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(
                    kind="linear", peak_learning_rate=1e-4, warmup_steps=10000, decay_steps=1_000_000
                ),
                b2=0.999,
                eps=1e-6,
                weight_decay=0.01,
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(),
        remat=False,
    )
