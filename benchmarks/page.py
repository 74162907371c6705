"""One self-contained HTML page of a run: facts, warnings, pictures, a table that sorts, all details."""

from __future__ import annotations

import base64
from html import escape

import plots
import report
from results import Row, rows_from

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1700px; padding: 0 1em; color: #1c1c1c; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3em .6em; border-bottom: 1px solid #ddd; vertical-align: top; }
th { cursor: pointer; background: #f3f4f6; position: sticky; top: 0; white-space: nowrap; }
td.number, td span { white-space: nowrap; } td.number { text-align: right; }
.sortable td:nth-child(3) { min-width: 13em; }
.missed { color: #b3261e; } .met { color: #0b6e4f; } .quiet { color: #666; font-size: .9em; }
.warning { background: #fff4d6; padding: .4em .8em; border-left: 4px solid #e0a100; }
img { max-width: 100%; } code { background: #f3f4f6; padding: .1em .3em; }
"""
SCRIPT = """
document.querySelectorAll('table.sortable th').forEach((head, column) => head.addEventListener('click', () => {
  const body = head.closest('table').tBodies[0], down = head.dataset.down === 'yes';
  head.dataset.down = down ? 'no' : 'yes';
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const rows = [...body.rows].sort((a, b) => {
    const x = key(a), y = key(b), n = Number(x) - Number(y);
    if (x === '' || y === '') return (x === '') - (y === '');
    return (down ? -1 : 1) * (Number.isNaN(n) ? x.localeCompare(y) : n);
  });
  body.append(...rows);
}));
"""


def html(data: dict) -> str:
    """Returns the page."""
    rows = rows_from(data)
    m = data["machine"]
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        f"<title>VideoAR benchmarks: {escape(m['device'])}</title><style>{STYLE}</style></head><body>",
        f"<h1>VideoAR benchmarks</h1><p>{'<br>'.join(map(escape, report.heading(data)))}</p>",
        f"<p><b>{escape(report.summary(rows))}</b></p>",
        *(f"<p class=warning>{escape(text)}</p>" for text in data["warnings"]),
        "<p>Times are medians of interleaved rounds; ± is half the interquartile range. ratio: best peer's time over "
        "ours, below 1 we lose. of limit: the machine's floor (useful FLOPs at the matmul rate, or compulsory bytes at "
        "the copy rate, both timed beside the row) over our time. Click a heading to sort.</p>",
        _table(rows),
        *(_image(name, figure) for name, figure in plots.figures(data).items()),
        "<h2>Details</h2><ul>",
        *(f"<li>{escape(line)}</li>" for line in report.remarks(rows)),
        "</ul><h2>Machine and settings</h2><table>",
        *(f"<tr><td>{escape(k)}</td><td>{escape(str(v))}</td></tr>" for k, v in {**m, **data["settings"]}.items()),
        f"</table><script>{SCRIPT}</script></body></html>\n",
    ]
    return "\n".join(parts)


def _table(rows: list[Row]) -> str:
    heads = ("family", *report.HEADER)
    lines = ["<table class=sortable><thead><tr>", *(f"<th>{escape(h)}</th>" for h in heads), "</tr></thead><tbody>"]
    for row in rows:
        values = {
            3: row.ours.median if row.ours else "",
            4: row.peers[row.best_peer].median if row.peers else "",
            5: "" if row.ratio is None else row.ratio,
            6: "" if row.share is None else row.share,
        }
        lines.append(f"<tr><td>{escape(row.family)}</td>")
        for i, text in enumerate(report.cells(row)[:-1]):
            value = f' class=number data-value="{values[i]}"' if i in values else ""
            lines.append(f"<td{value}>{escape(text)}</td>")
        lines.append(f"<td>{_bars(row)}</td></tr>")
    return "".join([*lines, "</tbody></table>"])


def _bars(row: Row) -> str:
    if row.wrong:
        return f"<span class=missed>{escape(row.wrong)}</span>"
    kinds = {True: "met", False: "missed", None: "quiet"}
    return "<br>".join(f"<span class={kinds[bar.met]}>{escape(report.bar_text(bar))}</span>" for bar in row.bars)


def _image(name: str, figure) -> str:
    data = base64.b64encode(plots.picture(figure)).decode()
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{data}">'
