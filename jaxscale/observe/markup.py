"""HTML built from values: text is always escaped, only `Html` is passed through."""

import html
from collections.abc import Sequence
from typing import Any

Row = tuple[str, ...]


class Html(str):
    """Markup that is safe to stand in a page as it is."""

    __slots__ = ()


def element(name: str, *children: str, **attributes: Any) -> Html:
    """One HTML element.

    Args:
      name: the tag's name.
      *children: `Html` as it is, any other string escaped.
      **attributes: escaped; `_` in a name stands for `-`, a last `_` is dropped (`class_`), and None leaves one out.

    >>> element("p", "a < b ", element("b", "bold"), class_="note", aria_label='"x"')
    '<p class="note" aria-label="&quot;x&quot;">a &lt; b <b>bold</b></p>'
    """
    given = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>{join(children)}</{name}>")


def join(children: Any, between: str = "") -> Html:
    """The children one after another, escaped where they are not `Html`.

    >>> join(["<", Html("<br>")])
    '&lt;<br>'
    """
    return Html(between.join(child if isinstance(child, Html) else html.escape(child) for child in children))


def table(
    caption: str, columns: tuple[str, ...], groups: Sequence[tuple[str, Sequence[Row]]], *, numeric: frozenset[int]
) -> Html:
    """A table whose first column heads its rows.

    Where the screen is narrow, a table of more than three columns becomes a list of cells, each with its column's
    name; the roles keep it a table for screen readers. A smaller one scrolls sideways.

    Args:
      caption: what the table tells; also the name of the box for screen readers.
      columns: the header of each column.
      groups: rows of cells, `Html` or text, under the name of their group; a group without a name has no header.
      numeric: the columns that are aligned to the right.
    """
    right = ["number" if index in numeric else None for index in range(len(columns))]
    head = [
        element("th", text, scope="col", role="columnheader", class_=right[index]) for index, text in enumerate(columns)
    ]
    bodies = [
        element(
            "tbody", *_group_header(name, len(columns)), *(_row(row, columns, right) for row in rows), role="rowgroup"
        )
        for name, rows in groups
    ]
    content = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *head, role="row"), role="rowgroup"),
        *bodies,
        role="table",
        class_="stacks" if len(columns) > 3 else None,
    )
    return element("div", content, class_="scroll", role="region", tabindex="0", aria_label=caption)


def _group_header(name: str, num_columns: int) -> list[Html]:
    if not name:
        return []
    header = element("th", name, scope="rowgroup", role="rowheader", colspan=num_columns)
    return [element("tr", header, role="row", class_="group")]


def _row(row: Row, columns: tuple[str, ...], right: list[str | None]) -> Html:
    cells = [
        element("td", element("div", cell), role="cell", data_column=columns[index], class_=right[index])
        for index, cell in enumerate(row[1:], 1)
    ]
    return element("tr", element("th", row[0], scope="row", role="rowheader"), *cells, role="row")
