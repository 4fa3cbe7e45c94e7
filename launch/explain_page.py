"""The page of `jaxscale explain`: a sharding plan drawn, its memory beside the chip's, and what was not understood."""

from collections.abc import Mapping

from jaxscale.cost.chips import Chip
from jaxscale.cost.memory import MemoryUse
from jaxscale.mesh import AXES, MeshSpec
from jaxscale.observe.drawings import Cut, GridDim
from jaxscale.observe.plan_sections import ArrayCard, ArrayCards, MemoryBar, MeshDrawing, Rows, StoredOrder, styles
from jaxscale.observe.report import Fact, Report
from jaxscale.observe.sections import Note, Section
from jaxscale.observe.units import format_bytes
from jaxscale.sharding.graph import Role
from jaxscale.sharding.jaxprs import Address
from jaxscale.sharding.plan import PlannedLeaf, ShardingPlan
from jaxscale.sharding.specs import num_parts, spec_text

_MAX_TENSORS = 12
_CLASSES = {
    "parameters": "the model, as the plan stores it",
    "optimizer": "its state",
    "batch": "the examples of a step",
    "gradients": "those there at that moment, sums over microbatches included",
    "kept": "results of the forward pass that the backward pass reads",
    "temporaries": "everything else that is there at that moment",
}
_MOMENTS = {"backward": "in the backward pass", "update": "while the optimizer updates"}
_FOLLOWS = ("follows",)


def explain_page(
    recipe: str, plan: ShardingPlan, memory: MemoryUse, chip: Chip, sources: Mapping[Address, str]
) -> Report:
    """The page.

    Args:
      recipe: what is explained.
      plan: where its arrays live.
      memory: of one device at the peak of a step, as predicted for that plan.
      chip: whose memory it is held against.
      sources: the lines that make the pinned activations.
    """
    num_devices, not_understood = plan.mesh.num_devices, len(plan.not_understood)
    leaves = len([leaf for leaf in plan.leaves if leaf.role == "parameter"])
    bar = _memory(memory, chip)
    return Report(
        title=f"Where {recipe} lives",
        summary=f"Every array of a training step on the mesh {plan.mesh}: how it is cut, by which rule, and why.",
        facts=(
            Fact(value=str(num_devices), label=f"devices, {plan.mesh}"),
            Fact(value=str(leaves), label="arrays of parameters"),
            Fact(value=format_bytes(memory.peak), label="on a device at the peak, predicted"),
            Fact(value=str(not_understood), label="kinds of operation not understood"),
        ),
        sections=(
            _mesh(plan.mesh),
            bar,
            _tensors(memory),
            _arrays("Parameters", "parameter", plan),
            _arrays("The batch", "batch", plan),
            _arrays("Optimizer state", "optimizer", plan),
            _activations(plan, sources),
            _not_understood(plan),
        ),
        styles=styles(),
    )


def card_of(leaf: PlannedLeaf, mesh: MeshSpec) -> ArrayCard:
    """A planned leaf as the page draws it."""
    layout = leaf.layout
    return ArrayCard(
        name=leaf.path,
        dtype=leaf.dtype,
        dims=tuple(
            GridDim(size=size, cuts=tuple(Cut(label=entry, ways=num_parts(mesh, (entry,))) for entry in axes))
            for size, axes in zip(leaf.shape, leaf.spec, strict=True)
        ),
        bytes_per_device=leaf.bytes_per_device,
        whys=tuple(zip(leaf.rules, leaf.reasons, strict=True)),
        rejected=leaf.rejected,
        stored=None if layout is None else StoredOrder(parts=layout.parts, num_shards=layout.num_shards),
    )


def _mesh(mesh: MeshSpec) -> Section:
    return MeshDrawing(
        title="The mesh",
        axes=tuple((axis, mesh.sizes[axis]) for axis in AXES),
        text="Each square is a device. Devices that are close in the drawing share the fastest network.",
    )


def _memory(memory: MemoryUse, chip: Chip) -> MemoryBar:
    return MemoryBar(
        title="Memory of a device",
        classes=tuple((name, memory.by_class[name], what) for name, what in _CLASSES.items()),
        limit_bytes=chip.limit_bytes_per_device,
        device=chip.name,
        text=(
            f"Counted from the program and the plan; nothing was compiled. The peak is {_MOMENTS[memory.moment]}. "
            "The line is where the memory ends; jaxscale plan asks the compiler."
        ),
    )


def _tensors(memory: MemoryUse) -> Section:
    shown = memory.tensors[:_MAX_TENSORS]
    return Rows(
        title="What is largest",
        caption=f"The {len(shown)} largest arrays on one device at that moment",
        columns=("array", "class", "shape of the whole", "on a device", "made at"),
        rows=tuple(
            (t.name, t.kind, f"{' × '.join(map(str, t.shape))} {t.dtype}", format_bytes(t.num_bytes), t.source)
            for t in shown
        ),
    )


def _arrays(title: str, role: Role, plan: ShardingPlan) -> Section:
    leaves = [leaf for leaf in plan.leaves if leaf.role == role]
    own = [leaf for leaf in leaves if leaf.rules != _FOLLOWS]
    text = f"{format_bytes(plan.total_bytes_per_device(role))} on each device. "
    if role == "parameter":
        text += "Filled is what the first device holds; a line has the colour of the axis that cuts there."
    if len(own) < len(leaves):
        text += f"{len(leaves) - len(own)} arrays are cut and stored as the parameters they are made from."
    return ArrayCards(
        title=title,
        num_devices=plan.mesh.num_devices,
        arrays=tuple(card_of(leaf, plan.mesh) for leaf in own),
        text=text.strip(),
    )


def _activations(plan: ShardingPlan, sources: Mapping[Address, str]) -> Section:
    rows = tuple(
        (
            sources.get(made.address) or f"equation {'.'.join(map(str, made.address))}",
            " × ".join(map(str, made.shape)),
            spec_text(made.spec),
            f"{made.rule}: {made.reason}",
        )
        for made in plan.activations
    )
    if not rows:
        return Note(title="Pinned results", paragraphs=("Nothing between the arrays is pinned on this mesh.",))
    return Rows(
        title="Pinned results",
        caption=f"{len(rows)} results of the program are told where to live; the compiler decides for the others",
        columns=("made at", "shape", "split over", "why"),
        rows=rows,
    )


def _not_understood(plan: ShardingPlan) -> Section:
    title = "What was not understood"
    if not plan.not_understood:
        return Note(title=title, paragraphs=("Nothing: every operation of the step was followed.",))
    return Note(
        title=title,
        paragraphs=("Dims that meet only in these operations are planned apart, as if they had nothing in common.",),
        items=tuple(
            f"{n.primitive}, {n.count} times{f', first at {n.source}' * bool(n.source)}" for n in plan.not_understood
        ),
    )
