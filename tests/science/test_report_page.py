"""report.html in a browser: nothing goes wrong, every figure has its marks, in both themes."""

import json
import re
import shutil
import subprocess

import pytest
from etils import epath
from helpers import TESTS, random_splits, save_npz
from studies import config_of, train

from configs import common
from kd_jax import report

pytestmark = pytest.mark.slow

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'chrome'))), None)
DARK = '--blink-settings=preferredColorScheme=0'
# figure -> the mark that it must have
MARKS = {
    'curve-val-0': 'symbol',
    'curve-train-': 'symbol',
    'paired': 'symbol',
    'gains': 'symbol',
    'cost-params': 'symbol',
    'cost-flops': 'symbol',
    'cost-latency_ms': 'symbol',
    'cost-images_per_second': 'symbol',
    'reliability': 'symbol',
    'confidence': 'line',
    'confusion': 'rect',
}


def opened(page, *flags):
    """(DOM once all is drawn, what the console said) of a page in Chromium."""
    if BROWSER is None:
        pytest.skip('there is no Chromium here; apt-get install chromium')
    usual = ('--headless=new', '--no-sandbox', '--disable-gpu', '--virtual-time-budget=9000')
    command = [BROWSER, *usual, '--enable-logging=stderr', *flags, '--dump-dom', f'file://{page}']
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if 'CONSOLE' in line]


def charts(dom):
    """Name -> SVG of the figures."""
    parts = re.split(r'id="chart-([\w-]+)"', dom)[1:]
    return {
        name: svg[1] if (svg := re.search(r'(<svg.*?</svg>)', rest, re.DOTALL)) else ''
        for name, rest in zip(parts[::2], parts[1::2], strict=True)
    }


def marks(svg, kind):
    """How many marks of a kind have a place."""
    inside = re.findall(rf'<g class="mark-{kind} role-mark[^>]*>(.*?)</g>', svg, re.DOTALL)
    return sum(len(re.findall(r'<path [^>]*d="M', part)) for part in inside)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """Of a study of one validation a run."""
    folder = tmp_path_factory.mktemp('page')
    taught = {'teachers': ('teacher',), 'epochs': 2.0, 'eval_every': 2.0, 'seeds': (0, 1)}
    alone = {name: value for name, value in taught.items() if name != 'teachers'}
    config = config_of(
        save_npz(folder / 'data.npz', random_splits()),
        teacher=(None, alone | {'model.width': 0.5}),
        alone=(None, alone),
        student=(common.distillation(), taught),
    )
    train(config, folder / 'w')
    assert report.write_page(folder / 'w', 12)
    return folder / 'w'


@pytest.mark.parametrize('flags', [(), (DARK,)], ids=['light', 'dark'])
def test_every_figure_has_its_marks_and_nothing_goes_wrong(workdir, flags):
    dom, said = opened(workdir / 'report.html', *flags)
    assert said == [] and 'data-drawn="yes"' in dom
    found = charts(dom)
    for name, kind in MARKS.items():
        mine = [svg for figure, svg in found.items() if figure.startswith(name)]
        assert mine and all(marks(svg, kind) for svg in mine), name
    assert all('<svg' in svg for svg in found.values())
    assert marks(found['paired'], 'symbol') == 2  # seeds
    assert len(re.findall(r'<img [^>]*src="data:image/png', dom)) == 12
    ink = '#e6eaef' if flags else '#1b1f24'
    assert (ink in found['cost-params']) and dom.count('<table') > 12


def test_a_page_of_an_earlier_version_and_one_that_is_not_finished(tmp_path):
    shutil.unpack_archive(TESTS / 'golden' / 'version_0_1.zip', tmp_path)
    for name in ('finished', 'unfinished'):
        assert report.write_page(tmp_path / name, 0) == (name == 'finished')
        dom, said = opened(tmp_path / name / 'report.html')
        assert said == [] and 'data-drawn="yes"' in dom
        found = charts(dom)
        assert all('<svg' in svg for svg in found.values()) and found['curve-val-0']


def test_what_names_of_classes_hold_is_not_run(workdir, tmp_path):
    """Also where a chart or a picture shows them."""
    intruder = '</script><img src=x onerror="document.title=1">'
    copy = epath.Path(shutil.copytree(workdir, tmp_path / 'w'))
    for path in copy.glob('*/seed*/config.json'):
        recorded = json.loads(path.read_text())
        classes = range(recorded['data']['num_classes'])
        recorded['data']['class_names'] = [f'{intruder}{k}' for k in classes]
        path.write_text(json.dumps(recorded))
    assert report.write_page(copy, 12)
    dom, said = opened(copy / 'report.html')
    assert said == [] and 'data-drawn="yes"' in dom and '<title>w</title>' in dom
    assert marks(charts(dom)['confusion'], 'rect') and '<img src="x"' not in dom
