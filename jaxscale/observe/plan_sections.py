"""The sections of a page that explains a sharding plan: its mesh, its arrays one by one, its memory by class."""

import dataclasses
import math
from pathlib import Path

from jaxscale.observe import drawings
from jaxscale.observe.drawings import GridDim
from jaxscale.observe.markup import Html, element, join, table
from jaxscale.observe.units import format_bytes

_STYLE = Path(__file__).with_name("plan_sections.css")


def styles() -> tuple[str, ...]:
    """The style sheets that a page with these sections needs beside the report's."""
    return drawings.style(), _STYLE.read_text(encoding="utf-8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshDrawing:
    """The devices of a mesh, grouped by its axes."""

    title: str
    axes: tuple[tuple[str, int], ...]
    text: str = ""

    def body(self) -> Html:
        """The drawing and the text."""
        drawing = element("div", drawings.draw_mesh(self.axes).inline(), class_="scroll", tabindex="0", role="group")
        return join([*_paragraphs(self.text), element("figure", drawing)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredOrder:
    """The order in which a dim of several parts is stored: dealt out to `num_shards` devices."""

    parts: tuple[int, ...]
    num_shards: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayCard:
    """Where one array lives, and why.

    Attributes:
      name: its path.
      dtype: of its elements.
      dims: its sizes, and what each is cut over.
      bytes_per_device: of one device's part.
      whys: what decided, by rule: name and reason.
      rejected: what was considered and not done.
      stored: its order, where that is not the program's.
    """

    name: str
    dtype: str
    dims: tuple[GridDim, ...]
    bytes_per_device: int
    whys: tuple[tuple[str, str], ...]
    rejected: tuple[str, ...] = ()
    stored: StoredOrder | None = None

    @property
    def num_parts(self) -> int:
        """Into how many parts it is cut."""
        return math.prod(dim.parts for dim in self.dims)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayCards:
    """Arrays drawn as the tiles that their devices hold, those that are cut; a table of those that are whole."""

    title: str
    num_devices: int
    arrays: tuple[ArrayCard, ...]
    text: str = ""

    def body(self) -> Html:
        """The cards, then the table."""
        cut = [self._card(array) for array in self.arrays if array.num_parts > 1]
        whole = [_whole_row(array) for array in self.arrays if array.num_parts == 1]
        made = [*_paragraphs(self.text), *cut]
        if whole:
            total = sum(array.bytes_per_device for array in self.arrays if array.num_parts == 1)
            caption = f"{len(whole)} whole on every device, {format_bytes(total)} in all"
            columns = ("array", "shape", "per device", "why")
            made.append(table(caption, columns, [("", whole)], numeric=frozenset({2})))
        return join(made)

    def _card(self, array: ArrayCard) -> Html:
        copies = self.num_devices // array.num_parts
        held = f"{format_bytes(array.bytes_per_device)} on each device, 1/{array.num_parts} of it"
        held += f"; {copies} devices hold the same part" if copies > 1 else "; no two devices hold the same part"
        pictures = [drawings.draw_grid(array.dims).inline()]
        if array.stored is not None:
            pictures.append(drawings.draw_layout(array.stored.parts, array.stored.num_shards).inline())
        words = element("div", _shape(array), element("p", held, class_="held-words"), _whys(array))
        grid = element("div", element("div", *pictures), words, class_="array-body")
        return element("article", element("h3", element("code", _breakable(array.name))), grid, class_="array")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryBar:
    """The memory of a device by class, against what there is.

    Attributes:
      title: the heading.
      classes: names, bytes and what each is.
      limit_bytes: what a program may use of a device; None where that is not known.
      device: what the device is called.
      text: what the figures are.
    """

    title: str
    classes: tuple[tuple[str, int, str], ...]
    limit_bytes: int | None
    device: str
    text: str = ""

    @property
    def verdict(self) -> str:
        """Whether it fits, in words."""
        peak = sum(size for _, size, _ in self.classes)
        if self.limit_bytes is None:
            return f"{format_bytes(peak)} at the peak; how much a {self.device} device has is not known."
        times = peak / self.limit_bytes
        share = "under 1% of" if times < 0.01 else f"{times:.0%} of" if times < 10 else f"{times:.0f} times"
        words = "It fits" if peak <= self.limit_bytes else "It does not fit"
        return (
            f"{words}: {format_bytes(peak)} at the peak is {share} the {format_bytes(self.limit_bytes)} that a "
            f"program may use of a {self.device} device."
        )

    def body(self) -> Html:
        """The verdict, the bar, and the table that is its legend."""
        peak = sum(size for _, size, _ in self.classes) or 1
        bar = drawings.draw_memory([(name, size) for name, size, _ in self.classes], self.limit_bytes)
        rows = [
            (
                join([element("span", class_=f"swatch class-{name}", aria_hidden="true"), name]),
                format_bytes(size),
                f"{size / peak:.1%}",
                what,
            )
            for name, size, what in self.classes
        ]
        legend = table(
            "Predicted bytes of one device when it is fullest",
            ("class", "bytes", "share", "what it is"),
            [("", rows)],
            numeric=frozenset({1, 2}),
        )
        return join(
            [
                element("p", element("strong", self.verdict)),
                *_paragraphs(self.text),
                element("figure", bar.inline()),
                legend,
            ]
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """A table of text, with a paragraph before it."""

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: str = ""

    def body(self) -> Html:
        """The paragraph and the table."""
        return join(
            [*_paragraphs(self.text), table(self.caption, self.columns, [("", self.rows)], numeric=frozenset())]
        )


def _paragraphs(text: str) -> list[Html]:
    return [element("p", paragraph) for paragraph in text.split("\n\n")] if text else []


def _shape(array: ArrayCard) -> Html:
    return element("p", _dims(array.dims), f" {array.dtype}", class_="split-words")


def _dims(dims: tuple[GridDim, ...]) -> Html:
    """The sizes, each with a chip for what it is cut over."""
    sizes = [
        join(
            [
                str(dim.size),
                *(element("span", f"{cut.label} {cut.ways}", class_=f"axis {cut.color}") for cut in dim.cuts),
            ]
        )
        for dim in dims
    ]
    return join(sizes or ["scalar"], " × ")


def _whys(array: ArrayCard) -> Html:
    made = [element("li", element("strong", rule), " ", reason) for rule, reason in array.whys]
    made += [element("li", element("strong", "rejected"), " ", reason, class_="rejected") for reason in array.rejected]
    return element("ul", *made, class_="whys")


def _whole_row(array: ArrayCard) -> tuple[str, ...]:
    shape = join([_dims(array.dims), f" {array.dtype}"])
    return element("code", _breakable(array.name)), shape, format_bytes(array.bytes_per_device), _whys(array)


def _breakable(name: str) -> Html:
    """A path that may be broken after its slashes."""
    return join([f"{part}/" for part in name.split("/")[:-1]] + name.split("/")[-1:], "<wbr>")
