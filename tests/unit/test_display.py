"""What a terminal, a notebook and a pipe show of a study."""

import io
import re
import sys

import pytest
from rich.cells import cell_len

from kd_jax import display, monitor
from kd_jax.display import Notebook, Plain, Terminal, bar_of, choose, layout
from kd_jax.progress import Part, Status

TRAINING = Status(
    'student',
    ('run 3 of 3', 'seed 1 (2 of 5)'),
    step=600,
    total=956,
    epochs=60.0,
    loss=0.32871,
    val='76.11 %',
    rate=12209.4,
    ends=(112.0, 158.0),
)


class Screen(io.StringIO):
    """A stdout that says it is a terminal."""

    encoding = 'utf-8'

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """`terminal()`: from now on stdout is one, of 80 columns."""

    def begin():
        monkeypatch.setenv('TERM', 'xterm')
        monkeypatch.setenv('COLUMNS', '80')
        for name in ('NO_COLOR', 'FORCE_COLOR'):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(sys, 'stdout', Screen())
        return sys.stdout

    return begin


def status(**changes):
    return Status(**{**vars(TRAINING), **changes})


def test_at_80_columns():
    assert layout(TRAINING, 80, 100.0) == [
        'student · run 3 of 3 · seed 1 (2 of 5) · epoch 37.7/60.0',
        f'{"━" * 24}{"─" * 15}  62 % · run 0:12 · study 0:58 left',
        'loss 0.3287 · val top-1 76.11 % · 12,209 images/s',
    ]


def test_at_40_columns_the_times_have_a_line_of_their_own():
    head, bar, facts, times = layout(TRAINING, 40, 100.0)
    assert head == 'student · run 3 of 3 · seed 1 (2 of 5)'
    assert bar == f'{"━" * 21}{"─" * 13}  62 %' and len(bar) == 40
    assert facts == 'loss 0.3287 · val top-1 76.11 %' and times == 'run 0:12 · study 0:58 left'


@pytest.mark.parametrize('width', [1, 2, 7, 20, 40, 59, 60, 80, 120, 300])
@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'title': 'студент-模型' * 20},
        {'ends': (1e7, 2e7), 'guessed': True},
        {'doing': 'compiling', 'loss': None, 'val': '', 'rate': 0.0, 'ends': None, 'step': 0},
        {'total': 0, 'doing': 'reads its data'},
    ],
)
def test_no_line_is_wider_than_the_window_and_a_training_keeps_its_height(width, changes):
    lines = layout(status(**changes), width, 100.0)
    assert all(cell_len(line) <= width for line in lines), lines
    assert len(lines) == (1 if changes.get('total') == 0 else 3 if width >= 60 else 4)


def test_what_is_done_instead_of_training_has_the_place_of_the_times():
    def beside(now, **changes):
        return layout(status(**changes), 80, now)[1].partition('% · ')[2]

    assert beside(104.0, doing='compiling', since=100.0) == 'compiling 0:04'
    assert beside(100.2, doing='validating', since=100.0).endswith('left'), 'a flicker'
    assert beside(101.2, doing='validating', since=100.0) == 'validating 0:01'
    assert beside(100.0, ends=(112.0, 112.3)) == '0:12 left'
    assert beside(100.0, guessed=True) == 'run 0:12 · study ≈ 0:58 left'
    assert beside(100.0, ends=None) == ''


def test_the_bar():
    assert [bar_of(share, 4) for share in (-1, 0, 0.125, 0.5, 1, 2)] == [
        '────', '────', '╸───', '━━──', '━━━━', '━━━━'
    ]  # fmt: skip


def test_plain_lines_where_stdout_is_no_terminal(capsys):
    chosen = choose()
    assert type(chosen) is Plain
    with display.showing(chosen):
        chosen.tracker.busy('study', 'reads its data')
        monitor.say('a line')
        monitor.detail('a detail')
        monitor.warn('careful')
    assert capsys.readouterr() == ('a line\na detail\n', 'warning: careful\n')


@pytest.mark.parametrize('term', ['dumb', 'unknown', ''])
def test_plain_lines_on_a_terminal_that_can_do_nothing(terminal, monkeypatch, term):
    terminal()
    monkeypatch.setenv('TERM', term)
    assert type(choose()) is Plain


def test_plain_lines_where_a_bar_cannot_be_written(terminal):
    screen = terminal()
    screen.encoding = 'ascii'
    assert type(choose()) is Plain


def test_other_processes_show_nothing(terminal):
    screen = terminal()
    chosen = choose(main=False)
    assert type(chosen) is Plain
    with display.showing(chosen):
        chosen.tracker.busy('study', 'reads its data')
    assert screen.getvalue() == ''


def test_on_a_terminal_what_is_said_stands_above_and_the_end_is_clean(terminal, monkeypatch):
    screen = terminal()
    monkeypatch.setattr(sys, 'stderr', screen)
    with display.showing() as shown:
        assert isinstance(shown, Terminal)
        monitor.say('nothing moves yet')
        assert screen.getvalue() == 'nothing moves yet\n'
        shown.tracker.begin('student', Part(100, 1))
        shown.tracker.training('seed 0', 0, 100, 10.0, 1)
        monitor.say('a sentence that is ' + 'much ' * 30 + 'wider than the window')
        monitor.warn('careful')
        monitor.detail('only for logs')
        print('from elsewhere')
    text = screen.getvalue()
    assert 'much ' * 30 in text and 'warning: careful\n' in text, 'as it is, not wrapped by hand'
    assert 'from elsewhere\n' in text and 'only for logs' not in text
    assert '\x1b[?25l' not in text, 'a hidden cursor would stay hidden after a kill'
    assert re.search(r'(\x1b\[1A\x1b\[2K)+$', text), 'the last lines are erased'
    assert type(display.current()) is Plain


def test_no_color(terminal, monkeypatch):
    screen = terminal()
    monkeypatch.setenv('NO_COLOR', '1')
    with display.showing() as shown:
        shown.tracker.begin('student', Part(100, 1))
        shown.tracker.training('seed 0', 50, 100, 10.0, 1)
        monitor.say('drawn anew below this')
    assert '━' in screen.getvalue() and not re.search(r'\x1b\[[\d;]*3\d', screen.getvalue())


def test_in_a_window_that_became_narrow_the_rows_of_before_are_erased(terminal, monkeypatch):
    terminal()
    shown = Terminal()
    shown.tracker.status, shown.tracker.clock = TRAINING, lambda: 100.0
    shown.lines()
    assert shown.wrapped() == 0
    monkeypatch.setenv('COLUMNS', '30')
    shown._console._width = None
    assert shown.wrapped() == 4


def test_a_terminal_that_was_closed_is_no_error(terminal, monkeypatch):
    screen = terminal()

    def closed(text):
        raise OSError(5, 'Input/output error')

    monkeypatch.setattr(screen, 'write', closed)
    with display.showing() as shown:
        shown.tracker.busy('study', 'reads its data')
        monitor.say('a line')


def test_the_user_is_told_that_the_wish_to_stop_was_heard(terminal):
    terminal()
    shown = Terminal(stopping=lambda: True)
    shown.tracker.status = TRAINING
    assert shown.lines()[-2].plain.startswith('stopping')


def test_a_notebook_has_a_bar_that_is_drawn_anew_at_times():
    pages = []

    class Handle:
        def __init__(self, page):
            pages.append(page)

        update = pages.append

    with display.showing(Notebook(Handle)) as shown:
        shown.tracker.begin('student <1>', Part(100, 1))
        shown.tracker.training('seed 0', 0, 100, 10.0, 1)
        for step in range(100):
            shown.tracker.stepped(step, 0.5)
        shown._drawn = -1.0
        shown.tracker.stepped(100, 0.25, '98.00 %')
    assert len(pages) <= 4 and pages[-1] == ''
    assert '<progress value="100" max="100">' in pages[-2]
    assert '<b>student &lt;1&gt;</b>' in pages[-2] and 'val top-1 98.00 %' in pages[-2]


def test_time_is_written_for_people():
    assert [display.clock(s) for s in (5, 75, 3700)] == ['0:05', '1:15', '1:01:40']
