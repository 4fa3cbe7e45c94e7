"""Recipes of the Llama family."""

from jaxscale.nn.families import decoder_config
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.language_model import LanguageModelJob
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig


def llama2_7b() -> LanguageModelJob:
    """Llama 2 7B: 6,738,415,616 parameters, 4,194,304 tokens per step; for `explain`, `plan` and `tune`.

    Command: jaxscale explain llama2_7b --mesh fsdp=64,tensor=4
    Source: Touvron et al. 2023, "Llama 2", table 1 and section 2.2, https://arxiv.org/abs/2307.09288; the widths are
      those of Llama 1 7B, table 2 of https://arxiv.org/abs/2302.13971.
    Count: of the published checkpoint, `meta-llama/Llama-2-7b`.
    """
    return LanguageModelJob(
        transformer=decoder_config(
            num_layers=32,
            d_model=4096,
            num_heads=32,
            num_kv_heads=32,
            d_ff=11008,
            vocab_size=32000,
            max_positions=4096,
            tied_output=False,
        ),
        sequence_length=4096,
        training=TrainingIdentity(
            num_steps=476_837,
            global_batch_size=1024,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(
                    peak_learning_rate=3e-4, final_learning_rate=3e-5, warmup_steps=2000, decay_steps=476_837
                ),
                b2=0.95,
                eps=1e-5,
                weight_decay=0.1,
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(),
    )
