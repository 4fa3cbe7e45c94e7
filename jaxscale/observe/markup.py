"""HTML built from values: text is always escaped, only `Html` is passed through."""

import html
from collections.abc import Sequence
from typing import Any


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


def table(caption: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, numeric: frozenset[int]) -> Html:
    """A table whose first column heads its rows.

    Where the screen is narrow, a table of more than three columns becomes a list of cells, each with its column's
    name; the roles keep it a table for screen readers. A smaller one scrolls sideways.

    Args:
      caption: what the table tells; also the name of the box for screen readers.
      columns: the header of each column.
      rows: the cells, `Html` or text.
      numeric: the columns that are aligned to the right.
    """
    right = ["number" if index in numeric else None for index in range(len(columns))]
    head = [
        element("th", text, scope="col", role="columnheader", class_=right[index]) for index, text in enumerate(columns)
    ]
    body = [
        element(
            "tr",
            element("th", row[0], scope="row", role="rowheader"),
            *(
                element("td", element("div", cell), role="cell", data_column=columns[index], class_=right[index])
                for index, cell in enumerate(row[1:], 1)
            ),
            role="row",
        )
        for row in rows
    ]
    content = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *head, role="row"), role="rowgroup"),
        element("tbody", *body, role="rowgroup"),
        role="table",
        class_="stacks" if len(columns) > 3 else None,
    )
    return element("div", content, class_="scroll", role="region", tabindex="0", aria_label=caption)
