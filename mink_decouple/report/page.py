"""One self-contained HTML page: tables, sections, style; nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

MARK = "mink_decouple comparison"
"""The page's generator, by which a page that may be overwritten is known."""

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1480px; margin: 0 auto; padding: 1.5rem; color: #1b1b1b;
  background: #fff; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; } nav a { margin-right: 1rem; } p { max-width: 75ch; }
.scroll { overflow-x: auto; } svg.plain { min-width: 32rem; } svg.wide { min-width: 56rem; }
table { border-collapse: collapse; font-size: .78rem; margin: .5rem 0; }
th, td { padding: .25rem .3rem; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th:first-child, td:first-child, td.text, th.text { text-align: left; } thead th { border-bottom: 2px solid #999;
  white-space: normal; vertical-align: bottom; }
thead th.sortable { cursor: pointer; } thead th.sortable::after { content: " \\2195"; color: #888; }
td.best { font-weight: 700; text-decoration: underline; } .quiet { color: #595959; }
figure { display: inline-block; margin: .3rem .6rem .3rem 0; vertical-align: top; }
figcaption { font-size: .82rem; color: #444; }
img, svg { max-width: 100%; height: auto; } details > summary { cursor: pointer; font-weight: 600; margin: .6rem 0; }
.swatch { display: inline-block; width: .8em; height: .8em; border: 1px solid #777; margin-right: .3em; }
.legend span { margin-right: 1rem; white-space: nowrap; }
@page { size: A4 landscape; margin: 10mm; }
@media print { body { max-width: none; padding: 0; font-size: 11px; } nav { display: none; }
  h2, h3, summary { break-after: avoid; } figure, tr, svg { break-inside: avoid; } .scroll { overflow: visible; }
  svg.plain, svg.wide { min-width: 0; } table { font-size: 9px; } thead th.sortable::after { content: ""; } }
"""

SCRIPT = """
const sort = head => {
  const table = head.closest("table"), place = [...head.parentNode.children].indexOf(head);
  const down = head.getAttribute("aria-sort") !== "descending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => { const text = row.children[place].textContent, number = parseFloat(text.replace(/,/g, ""));
    return isNaN(number) ? text : number; };
  const rows = [...table.tBodies[0].rows].sort((a, b) => { const x = key(a), y = key(b);
    const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    return down ? -order : order; });
  table.tBodies[0].append(...rows);
};
for (const head of document.querySelectorAll("th.sortable")) {
  head.addEventListener("click", () => sort(head));
  head.addEventListener("keydown", event => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    sort(head);
  });
}
// paper has no clicks: all that is folded is printed
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const fold of closed) fold.open = true;
});
addEventListener("afterprint", () => { for (const fold of closed) fold.open = false; });
"""


@dataclass
class Page:
    """Sections in their order.

    Attributes:
        title: of the page.
        parts: (title, HTML) of each section.
    """

    title: str
    parts: list[tuple[str, str]] = field(default_factory=list)

    def add(self, title: str, content: str) -> None:
        """Add a section; `content` is HTML."""
        self.parts.append((title, content))

    def html(self) -> str:
        """The whole page."""
        links = "".join(f'<a href="#s{i}">{escape(title)}</a>' for i, (title, _) in enumerate(self.parts))
        body = "".join(
            f'<section id="s{i}"><h2>{escape(title)}</h2>\n{content}\n</section>\n'
            for i, (title, content) in enumerate(self.parts)
        )
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="generator" content="{MARK}"><meta name="viewport" content="width=device-width">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head>\n<body><h1>{escape(self.title)}</h1>\n"
            f"<nav>{links}</nav>\n{body}<script>{SCRIPT}</script></body></html>\n"
        )


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, whether it is the best of its column, and a tint 0..1 of its background."""

    text: str
    best: bool = False
    tint: float | None = None


def table(headers: Sequence[str], rows: Sequence[Sequence[str | Cell]], text: int = 1, sortable: bool = False) -> str:
    """An HTML table whose first `text` columns are words; everything is escaped."""
    kinds = [" ".join(["sortable"] * sortable + ["text"] * (place < text)) for place in range(len(headers))]
    focus = ' tabindex="0"' if sortable else ""
    head = "".join(
        f'<th scope="col" class="{kind}"{focus}>{escape(name)}</th>' for kind, name in zip(kinds, headers, strict=True)
    )
    lines = []
    for row in rows:
        cells = []
        for place, value in enumerate(row):
            cell = value if isinstance(value, Cell) else Cell(value)
            names = " ".join(["text"] * (place < text) + ["best"] * cell.best)
            # a light blue whose text keeps its contrast
            tint = "" if cell.tint is None else f' style="background:rgba(0,114,178,{0.45 * cell.tint:.2f})"'
            cells.append(f'<td class="{names}"{tint}>{escape(cell.text)}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def missing(text: str) -> str:
    """What stands where a section cannot be filled."""
    return f'<p class="quiet">{escape(text)}</p>'


def image(uri: str, alternative: str, caption: str = "") -> str:
    """A picture with its words."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{uri}" alt="{escape(alternative)}">{below}</figure>'


def drawing(svg: str, alternative: str, wide: bool = False) -> str:
    """An inline drawing with its words; narrow windows scroll it where it would be too small to read."""
    kind = "wide" if wide else "plain"
    marked = svg.replace("<svg ", f'<svg class="{kind}" role="img" aria-label="{escape(alternative)}" ', 1)
    return f'<div class="scroll">{marked}</div>'


def folded(summary: str, content: str) -> str:
    """Content that is opened by a click."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def legend(names: Sequence[str], colors: Sequence[Sequence[int]]) -> str:
    """Colours of the classes."""
    spans = (
        f'<span><i class="swatch" style="background:rgb({",".join(map(str, color))})"></i>{escape(name)}</span>'
        for name, color in zip(names, colors, strict=True)
    )
    return f'<p class="legend">{"".join(spans)}</p>'
