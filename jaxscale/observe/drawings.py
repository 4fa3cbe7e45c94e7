"""Drawings of meshes, of arrays cut into tiles, of stored orders and of memory: SVG for a page, or a file of its own.

A drawing takes its colours from variables of the style sheet `drawings.css`, so that it follows light and dark; a mesh
axis has one colour wherever it is drawn, and its name beside it.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from jaxscale.observe.markup import Html, element, join
from jaxscale.observe.units import format_bytes

_STYLE = Path(__file__).with_name("drawings.css")
_AXES = frozenset({"slice", "stage", "data", "fsdp", "expert", "sequence", "tensor"})
_CHARACTER_PX = 6.4  # about the width of a character of a label
_LINE_PX = 16
_FRAME_PX = 10  # around a picture in a file

_PLANE_PX = 104  # the shorter side of an array
_MAX_TILES = 16  # more in a row are a grey smear
_MAX_SHEETS = 4
_SHEET_PX = 7

_SEGMENT_PX = 22
_MAX_SEGMENTS = 48
_MAX_PART_COLORS = 4

_CELL_PX = 30
_GAP_PX = 4
_MAX_ALONG = 8
_SHOWN_FIRST = 4
_DOTS_PX = 20

_BAR_PX = (600, 34)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """A picture of a known size, for a page, for a file, or to stand in a row of others.

    Attributes:
      width: in pixels.
      height: in pixels.
      content: its SVG elements, from (0, 0).
      words: what it shows, for those who do not see it.
    """

    width: float
    height: float
    content: Html
    words: str

    def inline(self) -> Html:
        """The picture for a page that has `style()` among its style sheets."""
        return element("svg", element("title", self.words), self.content, **self._attributes())

    def standalone(self) -> str:
        """The picture as a file that needs nothing beside it."""
        sheet = element("style", Html(style() + "svg { background: var(--draw-sheet); }\n"))
        frame = -_FRAME_PX, -_FRAME_PX, self.width + 2 * _FRAME_PX, self.height + 2 * _FRAME_PX
        attributes = {
            **self._attributes(),
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": " ".join(f"{number:g}" for number in frame),
            "width": f"{frame[2]:g}",
            "height": f"{frame[3]:g}",
        }
        return element("svg", sheet, element("title", self.words), self.content, **attributes) + "\n"

    def _attributes(self) -> dict[str, str]:
        return {
            "class_": "drawing",
            "viewBox": f"0 0 {self.width:g} {self.height:g}",
            "width": f"{self.width:g}",
            "height": f"{self.height:g}",
            "role": "img",
            "aria_label": self.words,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """A dim is cut into `ways` equal parts, over a mesh axis or a part of one.

    Attributes:
      label: what it is cut over, as `tensor` or `tensor[1:2]`.
      ways: into how many parts.
    """

    label: str
    ways: int

    @property
    def color(self) -> str:
        """The class that gives a line or a word the colour of the axis."""
        return axis_class(self.label)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridDim:
    """One dim of an array: its size, and how it is cut, outermost first."""

    size: int
    cuts: tuple[Cut, ...] = ()

    @property
    def parts(self) -> int:
        """Into how many parts it is cut."""
        return math.prod(cut.ways for cut in self.cuts)

    @property
    def words(self) -> str:
        """As `4096 over fsdp 4`."""
        over = " and ".join(f"{cut.label} {cut.ways}" for cut in self.cuts)
        return f"{self.size} over {over}" if over else f"{self.size} whole"


def style() -> str:
    """The style sheet of all drawings."""
    return _STYLE.read_text(encoding="utf-8")


def axis_class(label: str) -> str:
    """The class with the colour of an axis, or of a part of one.

    >>> axis_class("tensor[2:8]"), axis_class("other")
    ('axis-tensor', 'axis-none')
    """
    axis = label.partition("[")[0]
    return f"axis-{axis}" if axis in _AXES else "axis-none"


def draw_grid(dims: Sequence[GridDim]) -> Drawing:
    """An array as the tiles that its devices hold; filled is what the first of them holds.

    Two dims span the plane: those that are cut, else the largest. The others are sheets, one behind the other, with
    their sizes above. More than 16 tiles in a row are drawn as 16.

    Args:
      dims: in their order; none for a scalar.
    """
    words = f"array {' by '.join(dim.words for dim in dims)}" if dims else "scalar"
    rows, columns = _plane(dims)
    behind = [i for i in range(len(dims)) if i not in (rows, columns)]
    num_sheets = max([min(max(dims[i].parts, 3), _MAX_SHEETS) for i in behind if dims[i].size > 1], default=1)
    stack_is_cut = any(dims[i].cuts for i in behind)

    labels = [_label(i, dims[i]) for i in behind]
    top, left = float(_LINE_PX * (len(labels) + 1) + 4), float(_LINE_PX + 2)
    depth = _SHEET_PX * (num_sheets - 1)
    width = max(_PLANE_PX * 1.5, _label_px(dims, columns))
    height = max(_PLANE_PX * 1.0, _label_px(dims, rows))
    row_cuts, column_cuts = _cuts(dims, rows), _cuts(dims, columns)

    made: list[Html] = []
    for sheet in reversed(range(num_sheets)):
        x, y = left + sheet * _SHEET_PX, top + depth - sheet * _SHEET_PX
        is_held = sheet == 0 or not stack_is_cut
        made += _sheet(x, y, width, height, row_cuts, column_cuts, is_held=is_held)
    for line, label in enumerate(labels):
        made.append(element("text", label, x=left, y=_LINE_PX * (line + 1) - 4))
    if columns is not None:
        made.append(element("text", _label(columns, dims[columns]), x=left, y=top - 6))
    if rows is not None:
        x, y = left - 6, top + depth + height
        made.append(
            element("text", _label(rows, dims[rows]), x=0, y=0, transform=f"translate({x:g} {y:g}) rotate(-90)")
        )
    widest = max([_PLANE_PX * 1.5, *(_label_px(dims, i) for i in behind)])
    return Drawing(
        width=left + max(width + depth, widest) + 2, height=top + depth + height + 2, content=join(made), words=words
    )


def draw_mesh(axes: Sequence[tuple[str, int]]) -> Drawing:
    """The devices of a mesh, in groups: the last axis in a row, the one before it in a column, and so on.

    Of an axis of more than 8 devices the first 4 and the last are drawn.

    Args:
      axes: names and sizes, slowest network first; those of one device are left out.
    """
    axes = [(name, size) for name, size in axes if size > 1]
    words = f"mesh of {' by '.join(f'{name} {size}' for name, size in axes) or 'one device'}"
    drawn = _devices(axes, 0, is_first=True, is_across=len(axes) % 2 == 1)
    return dataclasses.replace(drawn, words=words)


def draw_layout(parts: Sequence[int], num_shards: int) -> Drawing:
    """The order in which a dim of several parts is stored, below the order in which the program has it.

    Args:
      parts: their sizes.
      num_shards: how many devices the dim is dealt out to.
    """
    shown = min(num_shards, max(_MAX_SEGMENTS // len(parts), 1))
    logical = [(part, shard) for part in range(len(parts)) for shard in range(shown)]
    stored = [(part, shard) for shard in range(shown) for part in range(len(parts))]
    label_px = 9 * _CHARACTER_PX
    size = min(_SEGMENT_PX, 560 / (len(parts) * shown))
    made: list[Html] = []
    for line, (name, order, group) in enumerate((("logical", logical, shown), ("stored", stored, len(parts)))):
        y = line * 30
        made.append(element("text", name, x=0, y=y + 16))
        for i, (part, shard) in enumerate(order):
            x = label_px + i * size + (i // group) * 4
            color = f"piece part-{part % _MAX_PART_COLORS + 1}{'' if shard else ' held'}"
            made.append(element("rect", x=f"{x:g}", y=y + 2, width=f"{size:g}", height=20, class_=color))
    num_gaps = max(len(parts), shown) - 1
    width = label_px + len(parts) * shown * size + 4 * num_gaps + 2
    note = f"{len(parts)} parts of {', '.join(map(str, parts))}; each device has {1}/{num_shards} of every part"
    made.append(element("text", note, x=0, y=70, class_="faint"))
    return Drawing(width=max(width, len(note) * _CHARACTER_PX), height=76, content=join(made), words=f"stored: {note}")


def draw_memory(classes: Sequence[tuple[str, int]], limit_bytes: int | None) -> Drawing:
    """A bar of bytes by class, with a line where the device's memory ends.

    Args:
      classes: names and bytes of one device, in the order in which they stand.
      limit_bytes: what a program may use of a device; None where that is not known.
    """
    total = sum(size for _, size in classes)
    width, height = _BAR_PX
    scale = width / max(total, limit_bytes or 0, 1) / (1 if limit_bytes is None else 1.02)
    made: list[Html] = [element("rect", x=0, y=0, width=width, height=height, class_="room")]
    x = 0.0
    for name, size in classes:
        title = element("title", f"{name} {format_bytes(size)}")
        bar = {"x": f"{x:g}", "y": 0, "width": f"{size * scale:g}", "height": height}
        made.append(element("rect", title, **bar, class_=f"class-{name}"))
        x += size * scale
    if limit_bytes is not None:
        end = limit_bytes * scale
        made.append(element("line", x1=f"{end:g}", y1=-4, x2=f"{end:g}", y2=height + 4, class_="limit"))
    shares = ", ".join(f"{name} {format_bytes(size)}" for name, size in classes)
    of = "" if limit_bytes is None else f" of {format_bytes(limit_bytes)}"
    return Drawing(
        width=width,
        height=height + 10,
        content=element("g", *made, transform="translate(0 5)"),
        words=f"{format_bytes(total)}{of}: {shares}",
    )


def in_a_row(drawings: Sequence[tuple[str, Drawing]], between: str = "") -> Drawing:
    """Drawings side by side, each under its caption, with a sign between them.

    Args:
      drawings: captions and pictures.
      between: the sign, as `then`; empty for none.
    """
    gap = 22 + len(between) * _CHARACTER_PX
    tallest = max(drawing.height for _, drawing in drawings)
    made: list[Html] = []
    x = 0.0
    for i, (caption, drawing) in enumerate(drawings):
        if i and between:
            made.append(
                element("text", between, x=f"{x - gap + 11:g}", y=f"{_LINE_PX + tallest / 2:g}", class_="faint")
            )
        made.append(element("text", caption, x=f"{x:g}", y=13, class_="caption"))
        made.append(element("g", drawing.content, transform=f"translate({x:g} {_LINE_PX + 6})"))
        x += max(drawing.width, len(caption) * _CHARACTER_PX * 1.2) + gap
    words = f" {between or 'and'} ".join(f"{caption}: {drawing.words}" for caption, drawing in drawings)
    return Drawing(width=x - gap, height=tallest + _LINE_PX + 6, content=join(made), words=words)


def _plane(dims: Sequence[GridDim]) -> tuple[int | None, int | None]:
    """Which dims run down and across: those cut, the last two of them; where they are too few, the largest."""
    cut = [i for i, dim in enumerate(dims) if dim.cuts]
    largest = sorted((i for i in range(len(dims)) if i not in cut), key=lambda i: -dims[i].size)
    chosen = sorted([*cut[-2:], *largest][:2])
    if not chosen:
        return None, None
    return (chosen[0], chosen[1]) if len(chosen) == 2 else (None, chosen[0])


def _cuts(dims: Sequence[GridDim], dim: int | None) -> tuple[Cut, ...]:
    return () if dim is None else dims[dim].cuts


def _label(position: int, dim: GridDim) -> Html:
    cuts = [element("tspan", f" {cut.label} {cut.ways}", class_=f"over {cut.color}") for cut in dim.cuts]
    return join([element("tspan", f"dim {position}: ", class_="faint"), str(dim.size), *cuts])


def _label_px(dims: Sequence[GridDim], dim: int | None) -> float:
    if dim is None:
        return 0.0
    over = sum(len(f" {cut.label} {cut.ways}") for cut in dims[dim].cuts)
    return (len(f"dim {dim}: {dims[dim].size}") + over) * _CHARACTER_PX


def _sheet(
    x: float, y: float, width: float, height: float, rows: tuple[Cut, ...], columns: tuple[Cut, ...], *, is_held: bool
) -> list[Html]:
    """One plane of an array, its first tile filled if the first device holds it."""
    down = min(math.prod(cut.ways for cut in rows), _MAX_TILES)
    across = min(math.prod(cut.ways for cut in columns), _MAX_TILES)
    box = {"x": f"{x:g}", "y": f"{y:g}"}
    made = [element("rect", **box, width=f"{width:g}", height=f"{height:g}", class_="sheet")]
    if is_held:
        made.append(element("rect", **box, width=f"{width / across:g}", height=f"{height / down:g}", class_="held"))
    for place, color in _lines(rows, down):
        d = f"M{x:g} {y + height * place:g}h{width:g}"
        made.append(element("path", d=d, class_=f"cut {color}"))
    for place, color in _lines(columns, across):
        d = f"M{x + width * place:g} {y:g}v{height:g}"
        made.append(element("path", d=d, class_=f"cut {color}"))
    return [*made, element("rect", **box, width=f"{width:g}", height=f"{height:g}", class_="edge")]


def _lines(cuts: tuple[Cut, ...], drawn: int) -> list[tuple[float, str]]:
    """Where a dim is cut, as shares of it, and the colour of each line: that of the outermost axis that cuts there."""
    made = []
    for i in range(1, drawn):
        ways, color = 1, "axis-none"
        for cut in cuts:
            ways, color = ways * cut.ways, cut.color
            if ways >= drawn or i % (drawn // ways) == 0:
                break
        made.append((i / drawn, color))
    return made


def _devices(axes: Sequence[tuple[str, int]], first: int, *, is_first: bool, is_across: bool) -> Drawing:
    """The group of devices from number `first` on that the axes make; only the first group of a kind has labels."""
    if not axes:
        number = element("text", str(first), x=_CELL_PX / 2, y=_CELL_PX / 2 + 4, class_="number")
        cell = element("rect", x=0, y=0, width=_CELL_PX, height=_CELL_PX, rx=4, class_="device")
        return Drawing(width=_CELL_PX, height=_CELL_PX, content=join([cell, number]), words="")
    (name, size), rest = axes[0], axes[1:]
    each = math.prod(size for _, size in rest)
    shown = range(size) if size <= _MAX_ALONG else [*range(_SHOWN_FIRST), size - 1]
    groups = [_devices(rest, first + i * each, is_first=is_first and i == 0, is_across=not is_across) for i in shown]
    label, gap = f"{name} {size}", _GAP_PX * (3 if rest else 1)
    head = _LINE_PX + 4 if is_first else 0
    inner = groups[0]
    made: list[Html] = []
    along = 0.0
    for i, group in zip(shown, groups, strict=True):
        if size > _MAX_ALONG and i == size - 1:
            x, y = (along + 6, head + inner.height / 2) if is_across else (head + inner.width / 2, along + 6)
            made.append(element("text", "⋯" if is_across else "⋮", x=f"{x:g}", y=f"{y + 4:g}", class_="faint"))
            along += _DOTS_PX
        # The first group is larger by the labels of what is inside; the others end where it ends.
        down, right = inner.height - group.height, inner.width - group.width
        x, y = (along, head + down) if is_across else (head + right, along)
        made.append(element("g", group.content, transform=f"translate({x:g} {y:g})"))
        along += (group.width if is_across else group.height) + gap
    along -= gap
    if is_first:
        made += _bracket(label, axis_class(name), along, is_across=is_across)
        along = max(along, len(label) * _CHARACTER_PX)
    width, height = (along, inner.height + head) if is_across else (inner.width + head, along)
    return Drawing(width=width, height=height, content=join(made), words="")


def _bracket(label: str, color: str, length: float, *, is_across: bool) -> list[Html]:
    """A line along the devices of an axis, with its name."""
    if is_across:
        line = element("path", d=f"M0 {_LINE_PX}h{length:g}", class_=f"bracket {color}")
        return [line, element("text", label, x=0, y=_LINE_PX - 5, class_=f"over {color}")]
    line = element("path", d=f"M{_LINE_PX} 0v{length:g}", class_=f"bracket {color}")
    place = f"translate({_LINE_PX - 5} {max(length, len(label) * _CHARACTER_PX):g}) rotate(-90)"
    return [line, element("text", label, x=0, y=0, transform=place, class_=f"over {color}")]
