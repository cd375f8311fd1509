"""Results as plain text for a terminal and as HTML for a notebook or the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

Row = Sequence[str]


def text_table(rows: Iterable[Row], *, right: Sequence[int] = (1,)) -> str:
    """Aligned columns, indented by two; the columns `right` are right-aligned."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(max(map(len, rows), default=0))]
    lines = []
    for row in rows:
        cells = [c.rjust(widths[i]) if i in right else c.ljust(widths[i]) for i, c in enumerate(row)]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def html_table(rows: Iterable[Row], header: Row = (), *, numbers: Sequence[int] = ()) -> str:
    """A table; the columns `numbers` are right-aligned."""

    def cells(row: Row, tag: str) -> str:
        return "".join(
            f'<{tag} style="text-align:{"right" if i in numbers else "left"}">{escape(str(cell))}</{tag}>'
            for i, cell in enumerate(row)
        )

    head = f"<thead><tr>{cells(header, 'th')}</tr></thead>" if header else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table>{head}<tbody>{body}</tbody></table>"


def number(value: float | int | None, digits: int = 3) -> str:
    """A number as people write it: 1,234 or 12.345, or 1.235e+09 from there on; a missing one is a dash."""
    if value is None:
        return "–"
    if abs(value) >= 1e9:
        return f"{value:.{digits}e}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"
