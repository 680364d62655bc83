"""A study on a terminal: what stands there while it trains, and how it ends."""

import contextlib
import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

import pyte
import pytest
from helpers import REPOSITORY, SMALL, environment

LONG = ('--only=alone', '--config.runs.alone.epochs=5000.', '--config.runs.alone.eval_every=1000.')


class Terminal:
    """`python -m kd_jax.main ARGUMENTS` on a terminal of so many columns.

    seen: all that it wrote. screen: what stands there.
    """

    def __init__(self, *arguments, columns=80, **changes):
        self.screen = pyte.Screen(columns, 50)
        self._stream = pyte.ByteStream(self.screen)
        self.seen = b''
        self._parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack('HHHH', 50, columns, 0, 0))
        command = [sys.executable, '-m', 'kd_jax.main', *map(str, arguments)]
        env = environment(**{'TERM': 'xterm-256color', **changes})
        for name in ('COLUMNS', 'LINES', *(['NO_COLOR'] if 'NO_COLOR' not in changes else [])):
            env.pop(name, None)
        self.process = subprocess.Popen(
            command, stdin=child, stdout=child, stderr=child, env=env, cwd=REPOSITORY
        )
        os.close(child)

    def read(self):
        """A piece of what it writes; False at its end."""
        chunk = b''
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            chunk = os.read(self._parent, 65536)
        self.seen += chunk
        self._stream.feed(chunk)
        return bool(chunk)

    def until(self, pattern, seconds=120):
        """Reads until a line of the screen has it; that line."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.read():
            for line in self.lines():
                if re.search(pattern, line):
                    return line
        raise AssertionError((pattern, self.lines()))

    def end(self):
        """Reads to the end; the exit status."""
        while self.read():
            pass
        os.close(self._parent)
        return self.process.wait()

    def lines(self):
        return [line.rstrip() for line in self.screen.display if line.strip()]


def test_a_study_begins_with_ten_lines_moves_one_and_leaves_none_behind(request):
    short = tempfile.mkdtemp(prefix='w')  # its path fits into a line
    request.addfinalizer(lambda: shutil.rmtree(short))
    terminal = Terminal(*SMALL, f'--workdir={short}')
    assert terminal.end() == 0
    lines = terminal.lines()
    assert re.fullmatch(r'run +model +params +epochs +seeds +teachers +objective', lines[0])
    names = [line.split()[0] for line in lines[1:9]]
    assert names == ['teacher', 'alone', 'student', 'data', 'alone,', 'devices', 'workdir', 'so']
    assert lines[4].endswith('digits: 1,020 train, 180 val, 597 test; 10 classes; 8 × 8 × 1')
    for line, name in zip(lines[9:], ('teacher', 'alone', 'student'), strict=False):
        assert re.fullmatch(rf'{name} seed 0 · test top-1 \d+\.\d\d % · \d+ s', line)
    assert re.match(r'run +teacher +alone +student', lines[12]), 'then the table'
    text = terminal.seen.decode()
    assert re.search(r'student.* · run 3 of 3 · seed 0 · epoch \d\.\d/2\.0', text)
    assert text.count('━') > 2 and '\x1b[1A' in text, 'drawn again and again'
    assert '━' not in ''.join(lines) and 'epoch' not in ''.join(lines)[300:], 'and gone at the end'
    assert '\x1b[?25l' not in text and terminal.screen.cursor.x == 0


@pytest.mark.parametrize('columns', [40, 120])
def test_ctrl_c_ends_it_with_one_sentence_and_a_terminal_in_order(tmp_path, columns):
    terminal = Terminal(*SMALL, *LONG, f'--workdir={tmp_path}', columns=columns)
    bar = terminal.until(r'━.* [1-9]\d? %')
    assert len(bar) <= columns
    before = len(terminal.seen)
    for _ in range(4):  # it is drawn again in the same place
        terminal.read()
    rows = terminal.lines()
    assert sum('━' in row or '─' in row for row in rows) == 1 and len(terminal.seen) > before
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    *_, last = terminal.lines()
    text = ''.join(terminal.lines())
    assert last in 'stopped by SIGINT; the same command continues' and '━' not in text
    assert text.count('stopped by') == 1 and 'Traceback' not in text
    assert terminal.screen.cursor.x == 0


def test_a_kill_leaves_the_cursor_where_a_prompt_belongs(tmp_path):
    terminal = Terminal(*SMALL, *LONG, f'--workdir={tmp_path}')
    terminal.until(r'━.* %')
    terminal.process.kill()
    assert terminal.end() == -signal.SIGKILL
    assert terminal.screen.cursor.x == 0 and not terminal.screen.cursor.hidden
    assert not terminal.screen.display[terminal.screen.cursor.y].strip()


@pytest.mark.parametrize('changes', [{'TERM': 'dumb'}, {'NO_COLOR': '1'}], ids=str)
def test_terminals_that_want_less(tmp_path, changes):
    terminal = Terminal(*SMALL, '--only=alone', f'--workdir={tmp_path}', **changes)
    assert terminal.end() == 0
    text = terminal.seen.decode()
    if 'TERM' in changes:
        assert '\x1b' not in text and re.search(r'alone seed 0 · epoch 2\.0/2\.0 · loss', text)
    else:
        assert '\x1b[1A' in text and not re.search(r'\x1b\[(\d+;)*[349]\d', text)
