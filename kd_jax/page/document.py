"""The page as HTML: one file, which fetches nothing. All that is data is escaped."""

import base64
import dataclasses
import html
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from kd_jax import __version__
from kd_jax.page.charts import Figure
from kd_jax.page.figures import class_names
from kd_jax.page.predictions import Predictions
from kd_jax.page.runs import MOST_SHOWN, Seed

# Nothing is fetched, and no expression of a chart is compiled.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
REFRESH = 10  # seconds between looks at a study that is not finished
MOST_PIXELS = 96  # of a picture's side
ROWS, LEAST = 3, 0.01  # likeliest classes of each of the two; what is less likely is left out


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page. body: HTML."""

    name: str
    title: str
    body: str


def text(value: object) -> str:
    """Escaped, for what stands between tags and in attributes."""
    return html.escape(str(value))


def paragraph(value: object, kind: str = 'note') -> str:
    return f'<p class="{kind}">{text(value)}</p>'


def table(
    head: Sequence[str], rows: Sequence[Sequence[object]], numeric: Sequence[int] = ()
) -> str:
    """A table in which the first cell of a row is its heading."""

    def cell(tag: str, k: int, content: object, more: str = '') -> str:
        kind = ' class="n"' if k in numeric else ''
        return f'<{tag}{kind}{more}>{text(content)}</{tag}>'

    top = ''.join(cell('th', k, name, ' scope="col"') for k, name in enumerate(head))
    body = ''.join(
        '<tr>'
        + cell('th', 0, row[0], ' scope="row"')
        + ''.join(cell('td', k, value) for k, value in enumerate(row[1:], 1))
        + '</tr>'
        for row in rows
    )
    inner = f'<thead><tr>{top}</tr></thead><tbody>{body}</tbody>'
    return f'<div class="scroll"><table>{inner}</table></div>'


def runs_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table of runs, which chooses those that the charts show. Two columns are words."""

    def kind(k: int) -> str:
        return ' class="n"' if k > 1 else ''

    top = ''.join(
        f'<th scope="col"{kind(k)}><button type="button">{text(name)}</button></th>'
        for k, name in enumerate(head)
    )
    body = ''.join(
        f'<tr><th scope="row"><label><input type="checkbox" data-run="{text(row[0])}">'
        f'{text(row[0])}</label></th>'
        + ''.join(f'<td{kind(k)}>{text(value)}</td>' for k, value in enumerate(row[1:], 1))
        + '</tr>'
        for row in rows
    )
    search = (
        '<input type="search" id="filter" placeholder="Filter the runs" '
        'aria-label="Filter the runs">'
        if len(rows) > MOST_SHOWN
        else ''
    )
    most = (
        f'<span id="most" class="note" hidden>{MOST_SHOWN} are shown, the most there can be.</span>'
    )
    return (
        f'<div class="tools">{search}{most}</div><div class="scroll"><table id="runs">'
        f'<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def tiles(of: Sequence[tuple[str, str]]) -> str:
    """Numbers that are read first, with what they are."""
    inner = ''.join(
        f'<div class="tile"><b>{text(value)}</b><span>{text(what)}</span></div>'
        for value, what in of
    )
    return f'<div class="tiles">{inner}</div>'


def cards(figures: Sequence[Figure]) -> str:
    """Where page.js draws figures."""
    inner = ''.join(
        f'<div class="card{" wide" if figure.of == "one" else ""}"><h3>{text(figure.title)}</h3>'
        f'<div class="chart" id="chart-{text(figure.name)}"></div></div>'
        for figure in figures
    )
    four = ' four' if len(figures) % 4 == 0 else ''
    return f'<div class="grid{four}">{inner}</div>'


def chooser(names: Sequence[str]) -> str:
    """Chooses the run of the figures that show one."""
    options = ''.join(f'<option>{text(name)}</option>' for name in names)
    return (
        f'<div class="tools"><label>Run <select id="one" autocomplete="off">{options}</select>'
        '</label></div>'
    )


def png(pixels: np.ndarray) -> str:
    """`[H, W, C]` uint8 as a data URI, not larger than `MOST_PIXELS`."""
    plain = pixels[..., 0] if pixels.shape[-1] < 3 else pixels[..., :3]
    image = Image.fromarray(plain)
    image.thumbnail((MOST_PIXELS, MOST_PIXELS))
    file = io.BytesIO()
    image.save(file, 'PNG')
    return f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'


def pictures(seed: Seed, of: Predictions) -> str:
    """The images on which a student and its teacher differ most."""
    shown = []
    largest = 1 + int(max(of['classes'].max(), of['label'].max(), of['teacher_classes'].max()))
    names = class_names(seed, largest)
    for k, index in enumerate(of['picked'].tolist()):
        taught = dict(zip(of['teacher_classes'][k].tolist(), of['teacher_share'][k], strict=True))
        own = dict(zip(of['classes'][index].tolist(), of['share'][index], strict=True))
        rows = ''
        likely = dict.fromkeys([*list(own)[:ROWS], *list(taught)[:ROWS]])
        most = {label: max(own.get(label, 0), taught.get(label, 0)) for label in likely}
        for label in sorted((c for c in most if most[c] >= LEAST), key=lambda c: -most[c]):
            cells = ''.join(
                f'<td class="n bar {kind}" style="--part:{100 * p:.0f}%">{100 * p:.0f} %</td>'
                for kind, p in (('taught', taught.get(label, 0)), ('own', own.get(label, 0)))
            )
            rows += f'<tr><th scope="row">{text(names[label])}</th>{cells}</tr>'
        label = int(of['label'][index])
        true = names[label] if label >= 0 else 'unknown'
        shown.append(
            '<figure class="card"><div class="picture">'
            f'<img src="{png(of["picture"][k])}" alt="test image {index}, label {text(true)}">'
            '<table><thead><tr><th scope="col">class</th><th scope="col" class="n">teacher</th>'
            f'<th scope="col" class="n">student</th></tr></thead><tbody>{rows}</tbody></table>'
            '</div>'
            f'<figcaption>Test image {index}, label <b>{text(true)}</b>; total variation distance '
            f'{float(of["distance"][k]):.2f}</figcaption></figure>'
        )
    return f'<div class="pictures">{"".join(shown)}</div>'


def details(summary: str, content: str) -> str:
    return f'<details><summary>{text(summary)}</summary>{content}</details>'


def code(content: str, kind: str = '') -> str:
    return f'<pre class="{kind}"><code>{text(content)}</code></pre>'


def in_script(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    written = json.dumps(value, separators=(',', ':'), allow_nan=False)
    for character in '<>&\u2028\u2029':
        written = written.replace(character, f'\\u{ord(character):04x}')
    return written


def asset(name: str) -> str:
    """A file of this package; without the address of a source map, which would be fetched."""
    lines = (resources.files('kd_jax.page') / name).read_text(encoding='utf-8').splitlines()
    return '\n'.join(line for line in lines if not line.startswith('//# sourceMappingURL'))


def document(
    title: str,
    lead: str,
    sections: Sequence[Section],
    data: Mapping[str, Any],
    *,
    finished: bool,
) -> str:
    """The page. lead: HTML between the title and the sections."""
    refresh = '' if finished else f'<meta http-equiv="refresh" content="{REFRESH}">'
    links = ''.join(f'<a href="#{s.name}">{text(s.title)}</a>' for s in sections)
    first, *rest = (
        f'<section id="{s.name}"><h2>{text(s.title)}</h2>{s.body}</section>' for s in sections
    )
    scripts = ''.join(
        f'<script>{asset(name)}</script>\n'
        for name in ('vega/vega.min.js', 'vega/vega-lite.min.js', 'vega/vega-embed.min.js')
    )
    written = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh}
<title>{text(title)}</title>
<style>{asset('page.css')}</style>
</head>
<body data-drawn="no">
<header><h1>{text(title)}</h1><nav>{links}</nav>{lead}</header>
<main>{first}<div id="shown"></div>{''.join(rest)}</main>
<footer>Written by kd_jax {__version__}. Charts: Vega, Vega-Lite and Vega-Embed (BSD 3-Clause).
The menu at the corner of each saves it as SVG or PNG.</footer>
<noscript><p>The charts need JavaScript, of which all is in this file.</p></noscript>
<script type="application/json" id="data">{in_script(data)}</script>
{scripts}<script>{asset('page.js')}</script>
</body>
</html>
"""
    # A name in a record may have halves of characters, which no file can have.
    return written.encode('utf-8', 'replace').decode('utf-8')
