"""Drawings: the tiles, lines and words they are made of, counted in the parsed SVG."""

import re
import xml.etree.ElementTree as ET

import pytest

from jaxscale.observe.drawings import (
    Cut,
    Drawing,
    GridDim,
    draw_grid,
    draw_layout,
    draw_memory,
    draw_mesh,
    in_a_row,
    style,
)

SVG = "{http://www.w3.org/2000/svg}"
EXPERT, FSDP, TENSOR = Cut(label="expert", ways=4), Cut(label="fsdp", ways=4), Cut(label="tensor", ways=2)


def parsed(drawing: Drawing) -> ET.Element:
    return ET.fromstring(drawing.standalone())


def of_class(drawing: Drawing, name: str) -> list[ET.Element]:
    return [found for found in parsed(drawing).iter() if name in found.get("class", "").split()]


def words(drawing: Drawing) -> list[str]:
    return ["".join(text.itertext()) for text in parsed(drawing).iter(f"{SVG}text")]


def test_a_matrix_is_cut_where_its_axes_cut_it():
    drawing = draw_grid([GridDim(size=4096, cuts=(FSDP,)), GridDim(size=128, cuts=(TENSOR,))])
    assert len(of_class(drawing, "axis-fsdp")) == 3 + 1  # lines between 4 parts, and the label
    assert len(of_class(drawing, "axis-tensor")) == 1 + 1
    (sheet,), (held,) = of_class(drawing, "sheet"), of_class(drawing, "held")
    assert float(held.get("width")) * 2 == float(sheet.get("width"))
    assert float(held.get("height")) * 4 == float(sheet.get("height"))
    assert words(drawing) == ["dim 1: 128 tensor 2", "dim 0: 4096 fsdp 4"]
    assert drawing.words == "array 4096 over fsdp 4 by 128 over tensor 2"


def test_a_dim_over_two_axes_has_the_outer_ones_line_in_the_middle():
    drawing = draw_grid([GridDim(size=64, cuts=(TENSOR, FSDP)), GridDim(size=8)])
    lines = [found.get("class") for found in parsed(drawing).iter(f"{SVG}path")]
    assert lines == ["cut axis-fsdp"] * 3 + ["cut axis-tensor"] + ["cut axis-fsdp"] * 3


@pytest.mark.parametrize(("cuts", "num_sheets", "num_held"), [((), 3, 3), ((EXPERT,), 4, 1)])
def test_other_dims_are_sheets_and_a_cut_stack_is_held_in_part(cuts, num_sheets, num_held):
    dims = [GridDim(size=8, cuts=cuts), GridDim(size=64, cuts=(FSDP,)), GridDim(size=32, cuts=(TENSOR,))]
    drawing = draw_grid(dims)
    assert len(of_class(drawing, "sheet")) == num_sheets
    assert len(of_class(drawing, "held")) == num_held
    assert words(drawing)[0].startswith("dim 0: 8")


@pytest.mark.parametrize("dims", [[], [GridDim(size=5)], [GridDim(size=4096, cuts=(Cut(label="fsdp", ways=4096),))]])
def test_scalars_vectors_and_many_parts_can_be_drawn(dims):
    drawing = draw_grid(dims)
    assert len(of_class(drawing, "held")) == 1
    assert len(of_class(drawing, "cut")) <= 15


def test_what_is_drawn_lies_inside_the_picture():
    drawing = draw_grid([GridDim(size=32), GridDim(size=4096, cuts=(FSDP,)), GridDim(size=14336, cuts=(TENSOR,))])
    for rect in parsed(drawing).iter(f"{SVG}rect"):
        assert float(rect.get("x")) + float(rect.get("width")) <= drawing.width
        assert float(rect.get("y")) + float(rect.get("height")) <= drawing.height


def test_a_small_mesh_has_every_device_in_the_order_of_its_axes():
    drawing = draw_mesh([("slice", 1), ("data", 2), ("fsdp", 2), ("tensor", 2)])
    assert [word for word in words(drawing) if word.isdigit()] == list("01234567")
    assert {"data 2", "fsdp 2", "tensor 2"} <= set(words(drawing))
    assert not any(word.startswith("slice") for word in words(drawing))


def test_of_a_long_axis_the_first_four_and_the_last_are_drawn():
    assert [word for word in words(draw_mesh([("fsdp", 64)])) if word.isdigit()] == ["0", "1", "2", "3", "63"]


def test_one_device_is_one_square():
    assert words(draw_mesh([("data", 1)])) == ["0"]


def test_a_stored_order_deals_every_part_out():
    drawing = draw_layout((6, 2, 2), 2)
    pieces = [re.sub(r"piece part-(\d)( held)?", r"\1\2", found.get("class")) for found in of_class(drawing, "piece")]
    assert pieces == ["1 held", "1", "2 held", "2", "3 held", "3", "1 held", "2 held", "3 held", "1", "2", "3"]
    assert "each device has 1/2 of every part" in drawing.words


@pytest.mark.parametrize(("limit", "has_line"), [(1024, True), (None, False)])
def test_memory_is_drawn_to_scale_with_its_limit(limit, has_line):
    drawing = draw_memory([("parameters", 512), ("kept", 1536)], limit)
    widths = [
        float(found.get("width")) for name in ("parameters", "kept") for found in of_class(drawing, f"class-{name}")
    ]
    assert widths[1] == pytest.approx(3 * widths[0], rel=1e-4)
    assert bool(of_class(drawing, "limit")) == has_line
    if has_line:
        assert float(of_class(drawing, "limit")[0].get("x1")) == pytest.approx(sum(widths) / 2, rel=1e-4)


def test_drawings_in_a_row_do_not_overlap():
    one = draw_grid([GridDim(size=8), GridDim(size=8)])
    row = in_a_row([("first", one), ("second", one)], between="then")
    assert row.width > 2 * one.width
    assert words(row)[0] == "first"
    assert "then" in words(row)


def test_names_of_users_are_text():
    drawing = draw_grid([GridDim(size=4, cuts=(Cut(label="<script>&", ways=2),))])
    assert "<script>" not in drawing.inline()
    assert words(drawing) == ["dim 0: 4 <script>& 2"]


def test_every_colour_has_a_light_and_a_dark_value():
    light, dark = (
        set(re.findall(r"(--[\w-]+):", block)) for block in re.findall(r":root \{(.*?)\}", style(), re.DOTALL)
    )
    assert light == dark
    assert "url(" not in style()
    assert "http" not in style()
