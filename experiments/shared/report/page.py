"""Self-contained HTML pages: no scripts, and nothing is loaded from elsewhere.

Each function returns a piece of HTML; text that is passed in is escaped.
"""

import base64
import html
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

_PAGE = string.Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #f4f5f7; margin: 0; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem 2rem 3rem; background: #fff; }
h1 { font-size: 1.7rem; margin: 1rem 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid #ddd; }
.notice { background: #fff6dd; border-left: 4px solid #e0a800; padding: .4rem .9rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; padding: 0; }
.tiles div { background: #eef3fa; border-radius: .4rem; padding: .6rem 1rem; }
.tiles dt { font-size: .8rem; color: #555; }
.tiles dd { margin: 0; font-size: 1.25rem; font-weight: 600; }
.side-by-side { display: flex; flex-wrap: wrap; gap: 1rem; }
.side-by-side > * { flex: 1 1 24rem; min-width: 0; }
figure { margin: .8rem 0; overflow-x: auto; }
figure img { max-width: 100%; height: auto; }
figcaption { font-size: .88rem; color: #555; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #e4e4e4; }
th { font-weight: 600; border-bottom: 2px solid #bbb; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.marked td { background: #eef3fa; font-weight: 600; }
code { font-size: .88rem; background: #f1f1f1; padding: .1rem .3rem; overflow-wrap: anywhere; }
</style>
</head>
<body>
<main>
<h1>$title</h1>
$content
</main>
</body>
</html>
""")


def page(title: str, parts: Sequence[str]) -> str:
    """Returns a whole page.

    Args:
        title: Its title.
        parts: The pieces of HTML that follow it.

    Example:
        >>> "<p>1 &lt; 2</p>" in page("A page", [paragraph("1 < 2")])
        True
    """
    return _PAGE.substitute(title=html.escape(title), content="\n".join(parts))


def heading(text: str) -> str:
    """Returns the heading of a section."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    """Returns a paragraph; of kind ``"notice"``, one that stands out."""
    start = f'<p class="{kind}">' if kind else "<p>"
    return f"{start}{html.escape(text)}</p>"


def code(text: str) -> str:
    """Returns a paragraph of program text."""
    return f"<p><code>{html.escape(text)}</code></p>"


def tiles(facts: Mapping[str, str]) -> str:
    """Returns a row of facts, each with its name above it."""
    cells = (
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in facts.items()
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]], marked: int | None = None) -> str:
    """Returns a table.

    Args:
        headers: The names of the columns.
        rows: The cells of every row.
        marked: The number of a row that stands out.
    """
    lines = [_row("th", headers)]
    lines += [_row("td", row, "marked" if i == marked else "") for i, row in enumerate(rows)]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def picture(path: pathlib.Path, caption: str) -> str:
    """Returns a figure with the content of a PNG file inside."""
    content = base64.b64encode(path.read_bytes()).decode()
    caption = html.escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{content}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def side_by_side(parts: Sequence[str]) -> str:
    """Returns pieces beside each other where the window is wide enough."""
    return f'<div class="side-by-side">{"".join(parts)}</div>'


def _row(tag: str, cells: Sequence[Any], kind: str = "") -> str:
    start = f'<tr class="{kind}">' if kind else "<tr>"
    return start + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
