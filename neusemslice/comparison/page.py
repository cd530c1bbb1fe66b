"""The frame of the report: one HTML file that loads nothing from anywhere."""

from collections.abc import Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark;
  --ground: #ffffff; --text: #1c2430; --soft: #5b6675; --rule: #dfe4ea; --best: #e6f1ff }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14181f; --text: #e6eaf0; --soft: #9aa5b4; --rule: #2c3440; --best: #1b3252 }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1080px; padding: 40px 24px 64px; background: var(--ground); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 12px }
h2 { font-size: 20px; margin: 48px 0 8px; padding-top: 16px; border-top: 1px solid var(--rule) }
h3 { font-size: 15px; margin: 24px 0 6px }
p { margin: 6px 0 12px; max-width: 76ch }
.lead { font-size: 18px; line-height: 1.5 }
.soft { color: var(--soft) }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 20px 32px }
figure { margin: 0 }
figcaption { font-weight: 600; margin-bottom: 2px }
figure svg { width: 100%; height: auto; display: block }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 8px 0 16px; padding: 0 }
.legend li { display: flex; align-items: center; gap: 7px }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin: 8px 0 16px; font-variant-numeric: tabular-nums; font-size: 14px }
caption { text-align: left; font-weight: 600; padding: 4px 0 6px }
th, td { padding: 5px 12px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap }
th { font-weight: 600; color: var(--soft) }
th:first-child, td:first-child { text-align: left; padding-left: 2px }
tbody th { color: inherit; font-weight: 500 }
td.best { background: var(--best); font-weight: 650 }
details { margin: 12px 0 }
summary { cursor: pointer; font-weight: 600 }
"""


def table(
    caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], best: set[tuple[int, int]] | None = None
) -> str:
    """A table whose rows begin with their name. All text is escaped.

    Args:
        best: (row, column) of the cells to stand out.
    """
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = []
    for number, (name, *cells) in enumerate(rows):
        looks = (' class="best"' if (number, column) in (best or ()) else "" for column in range(1, len(cells) + 1))
        tail = "".join(f"<td{look}>{escape(cell)}</td>" for look, cell in zip(looks, cells, strict=True))
        body.append(f'<tr><th scope="row">{escape(name)}</th>{tail}</tr>')
    top = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{top}<thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def paragraph(words: str, look: str = "") -> str:
    """A paragraph of plain words."""
    return f'<p class="{look}">{escape(words)}</p>' if look else f"<p>{escape(words)}</p>"


def figure(caption: str, chart: str) -> str:
    """A chart under its caption."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{chart}</figure>"


def folded(summary: str, content: str) -> str:
    """Content that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def page(title: str, sections: Sequence[str]) -> str:
    """The whole document; `sections` are HTML already. Scripts and requests are forbidden in it."""
    content = "\n".join(sections)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{content}\n</body></html>\n"
    )
