"""What the compiler says of a step: it is compiled for devices that need not be there, and its program is read.

Memory by class, collectives by kind and mesh axis with loops multiplied out, FLOPs as XLA counts them, or why it does
not fit.
"""

import collections
import dataclasses
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxscale.cost.compiler_dump import (
    Buffer,
    allocated_bytes,
    available_bytes,
    dump_options,
    dumped_text,
    is_complete,
    needed_bytes,
    peak_buffers,
)
from jaxscale.cost.rings import ring_bytes
from jaxscale.sharding.collectives import Collective, CollectiveKind, collectives
from jaxscale.sharding.plan import replicated

_NUM_BUFFERS = 12
_POLL_S = 0.2
# The compiler's refusal comes right after its account of the memory; seconds to wait for it.
_REFUSAL_S = 5.0
_PACKAGES = ("jax", "jaxlib", "libtpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledMemory:
    """Bytes on one device, as the compiler laid them out, padding included.

    Attributes:
      arguments: state and batch.
      outputs: the new state and the loss; without machine code only those that are not written over arguments.
      aliased: outputs that are written over donated arguments; 0 without machine code.
      temporaries: everything that lives only within the step, gradients and kept activations among it.
      code: the program itself.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        """What a device needs for it all, the program's code left out: TPUs do not keep it all in this memory."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectiveTotal:
    """All collectives of one kind over the same axes in one execution of a program.

    Attributes:
      axes: mesh axes that take part, in the mesh's order.
      kind: what they do.
      group_size: devices that take part together.
      num_runs: how often.
      num_bytes: their arrays, as `ring_bytes` counts them for each kind, all runs together.
      bytes_moved: what each device sends, all runs together, by the ring algorithm.
    """

    axes: tuple[str, ...]
    kind: CollectiveKind
    group_size: int
    num_runs: int
    num_bytes: int
    bytes_moved: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutOfMemory:
    """The compiler's refusal.

    Attributes:
      needed_bytes: on one device; None where the compiler did not say.
      available_bytes: the same.
      message: its words.
    """

    needed_bytes: int | None
    available_bytes: int | None
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """What the compiler made of a step, or why it made nothing.

    Attributes:
      memory: None where it does not fit.
      out_of_memory: None where it fits.
      collectives: by axes and kind; also of a program that does not fit, where the compiler shows it.
      loops_known: whether every loop with a collective has a known number of turns; else such a loop counts once.
      xla_flops: per device; XLA counts the body of a loop once, so it is low by the depth of a scanned model.
      buffers: the largest arrays in memory when it is fullest; the CPU compiler does not tell.
      compile_s: seconds.
      versions: of jax, jaxlib and libtpu.
    """

    memory: CompiledMemory | None
    out_of_memory: OutOfMemory | None
    collectives: tuple[CollectiveTotal, ...]
    loops_known: bool
    xla_flops: float | None
    buffers: tuple[Buffer, ...]
    compile_s: float
    versions: dict[str, str]

    @property
    def needed_bytes(self) -> int | None:
        """What a device needs, whether or not it has that much; None where the compiler did not say."""
        if self.memory is not None:
            return self.memory.peak
        return None if self.out_of_memory is None else self.out_of_memory.needed_bytes


def lower_step(
    step: Callable[[Any, Any], Any], state: Any, batch: Any, *, state_shardings: Any, batch_shardings: Any, mesh: Mesh
) -> jax.stages.Lowered:
    """The training step, ready to be compiled: the state donated and kept where it is, the metrics on every device.

    Args:
      step: `(state, batch) -> (state, metrics)`, pure.
      state: a tree of `jax.ShapeDtypeStruct`.
      batch: the same.
      state_shardings: a tree like the state.
      batch_shardings: a tree like the batch.
      mesh: what the shardings are on; its devices may be described ones.
    """
    jitted = jax.jit(
        step,
        in_shardings=(state_shardings, batch_shardings),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return jitted.lower(state, batch)


def compile_step(
    lowered: jax.stages.Lowered,
    mesh: Mesh,
    axes: Mapping[str, int],
    *,
    machine_code: bool = True,
) -> CompiledStep:
    """Compiles a step and reads what came of it. Not fitting into memory is an answer, no error.

    Only a process of its own should do this for a described TPU: libtpu is loaded for good, a failure in it ends
    the process, and without machine code a thread goes on making it until `os._exit`.

    Args:
      lowered: of `lower_step`.
      mesh: that it was lowered for.
      axes: the sizes of the mesh's axes by the names to report, in the order of its devices, as `MeshSpec.sizes`.
      machine_code: False to stop when a TPU program is complete, its memory and collectives known, which takes a tenth
        of the time; the CPU compiler does not stop.

    Raises:
      jax.errors.JaxRuntimeError: the compiler failed for another reason than memory.
    """
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    with tempfile.TemporaryDirectory(prefix="jaxscale-dump-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        options = dump_options(folder) if on_tpu else None
        started = time.monotonic()
        try:
            if on_tpu and not machine_code:
                _compile_program(lowered, options, folder)
                compiled = None
            else:
                compiled = lowered.compile(options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return _refused(folder, str(error), axes, time.monotonic() - started)
        seconds = time.monotonic() - started
        found = collectives(dumped_text(folder) if compiled is None or on_tpu else compiled.as_text() or "", axes)
        return CompiledStep(
            memory=_memory(compiled.memory_analysis()) if compiled else _allocated(folder),
            out_of_memory=None,
            collectives=totals(found),
            loops_known=all(c.num_runs_known for c in found),
            xla_flops=_xla_flops(compiled) if compiled else None,
            buffers=peak_buffers(folder, most=_NUM_BUFFERS) if on_tpu else (),
            compile_s=seconds,
            versions=_versions(),
        )


def totals(found: tuple[Collective, ...]) -> tuple[CollectiveTotal, ...]:
    """Collectives added up by axes, kind and size of group, those that move most first."""
    grouped: dict[tuple[tuple[str, ...], CollectiveKind, int], list[Collective]] = collections.defaultdict(list)
    for collective in found:
        grouped[collective.axes, collective.kind, collective.group_size].append(collective)
    made = [
        CollectiveTotal(
            axes=axes,
            kind=kind,
            group_size=group_size,
            num_runs=sum(c.num_runs for c in members),
            num_bytes=sum(c.total_bytes for c in members),
            bytes_moved=sum(ring_bytes(kind, c.num_bytes, group_size) * c.num_runs for c in members),
        )
        for (axes, kind, group_size), members in grouped.items()
    ]
    return tuple(sorted(made, key=lambda total: (-total.bytes_moved, total.axes, total.kind, total.group_size)))


def _compile_program(lowered: jax.stages.Lowered, options: Any, folder: Path) -> None:
    """Compiles in a thread until the program is in the dump folder, and raises what the compiler raised till then."""
    raised: list[BaseException] = []

    def compile_all() -> None:
        try:
            lowered.compile(options)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=compile_all, daemon=True)
    thread.start()
    while thread.is_alive() and not is_complete(folder):
        time.sleep(_POLL_S)
    thread.join(_REFUSAL_S)
    if raised:
        raise raised[0]


def _refused(folder: Path, message: str, axes: Mapping[str, int], seconds: float) -> CompiledStep:
    found = collectives(dumped_text(folder), axes)
    return CompiledStep(
        memory=None,
        out_of_memory=OutOfMemory(
            needed_bytes=needed_bytes(folder), available_bytes=available_bytes(message), message=message.splitlines()[0]
        ),
        collectives=totals(found),
        loops_known=all(c.num_runs_known for c in found),
        xla_flops=None,
        buffers=peak_buffers(folder, most=_NUM_BUFFERS),
        compile_s=seconds,
        versions=_versions(),
    )


def _memory(analysis: Any) -> CompiledMemory:
    return CompiledMemory(
        arguments=analysis.argument_size_in_bytes,
        outputs=analysis.output_size_in_bytes,
        aliased=analysis.alias_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
    )


def _allocated(folder: Path) -> CompiledMemory:
    return CompiledMemory(**allocated_bytes(folder), aliased=0, code=0)


def _xla_flops(compiled: jax.stages.Compiled) -> float | None:
    analysis = compiled.cost_analysis()
    return float(analysis["flops"]) if analysis and "flops" in analysis else None


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
