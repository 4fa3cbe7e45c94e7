"""A recipe's job with the settings that `jaxscale tune` may choose, and the flags that say them."""

import dataclasses
from typing import Any

from jaxscale.cost.tune_candidates import Settings, Space
from jaxscale.errors import UsageError
from jaxscale.mesh import AXES
from jaxscale.train.job import TrainingIdentity
from jaxscale.train.language_model import LanguageModelJob
from jaxscale.train.sequence_to_sequence import SequenceToSequenceJob

# What a job's field `remat` is called here; what keeps least comes first.
_REMATS: dict[str, Any] = {"full": True, "matmuls": "matmuls", "none": False}
_AS_IT_IS = "as it is"
# Jobs whose loss is a mean over examples, so that the number of microbatches changes nothing that is learnt. Towers
# compare the examples of a microbatch with each other.
_MEANS_OVER_EXAMPLES = (LanguageModelJob, SequenceToSequenceJob)
_MESH_AXES = tuple(axis for axis in AXES if axis not in ("slice", "stage", "expert"))


def space_of(job: Any) -> Space:
    """What may be chosen of a job without changing what it learns.

    Args:
      job: that a recipe returns.

    Raises:
      UsageError: the job has no field `training`, where its microbatches and its optimizer are chosen.
    """
    if not isinstance(getattr(job, "training", None), TrainingIdentity):
        raise UsageError(
            f"{type(job).__name__} has no field `training` of type TrainingIdentity, where tune sets microbatches and "
            "the optimizer's precision; give the job one and make its planned_step() of it, or compare meshes by "
            "`jaxscale plan --no-compile`, which needs none"
        )
    has_experts = getattr(getattr(job, "transformer", None), "experts", None) is not None
    return Space(
        axes=(*_MESH_AXES, "expert") if has_experts else _MESH_AXES,
        remats=tuple(_REMATS) if _has_remat(job) else (_AS_IT_IS,),
        optimizer_dtypes=("float32", "bfloat16"),
        num_microbatches=None if isinstance(job, _MEANS_OVER_EXAMPLES) else job.training.grad_accum,
    )


def with_settings(job: Any, settings: Settings) -> Any:
    """The job with the settings.

    Args:
      job: that a recipe returns.
      settings: of its `space_of`.

    Raises:
      UsageError: the job can't have them.
    """
    training = dataclasses.replace(
        job.training,
        grad_accum=settings.num_microbatches,
        optimizer=dataclasses.replace(job.training.optimizer, first_moment_dtype=settings.optimizer_dtype),
    )
    changed: dict[str, Any] = {"training": training}
    if _has_remat(job):
        changed["remat"] = _REMATS[settings.remat]
    return dataclasses.replace(job, **changed)


def flags_of(job: Any, settings: Settings) -> str:
    """The settings as flags of `jaxscale plan` and `jaxscale train`.

    Args:
      job: that a recipe returns.
      settings: of its `space_of`.
    """
    words = [f"--training.grad-accum {settings.num_microbatches}"]
    words += [f"--training.optimizer.first-moment-dtype {settings.optimizer_dtype}"]
    words += [f"--remat {_REMATS[settings.remat]}"] if _has_remat(job) else []
    return " ".join(words)


def _has_remat(job: Any) -> bool:
    return any(field.name == "remat" for field in dataclasses.fields(job))
