"""`kd_jax COMMAND`."""

import sys

import commands
import pytest
from helpers import REPOSITORY, environment

import kd_jax
from kd_jax import __main__ as command
from kd_jax.command import stock


def called(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['kd_jax', *arguments])
    monkeypatch.setattr(command.signals, 'end_at_once', lambda: None)
    command.main()


@pytest.mark.parametrize('flags', [(), ('--help',), ('-h',), ('help',)], ids=str)
def test_help_names_every_command_on_one_screen(monkeypatch, capsys, flags):
    called(monkeypatch, *flags)
    out = capsys.readouterr().out
    assert all(f'  {name} ' in out for name in command.COMMANDS) and 'digits' in out
    assert len(out.splitlines()) <= 24 and max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize('name', command.COMMANDS)
def test_help_of_a_command_fits_a_screen(name):
    done = commands.run('kd_jax', name, '--help', env=environment())
    assert done.returncode == 0 and '--' in done.stdout
    out = done.stdout
    assert len(out.splitlines()) <= 40 and max(map(len, out.splitlines())) <= 100


def test_an_unknown_command_is_one_sentence(monkeypatch, capsys):
    with pytest.raises(SystemExit, match='2'):
        called(monkeypatch, 'trian')
    assert "unknown command 'trian'; did you mean 'train'?" in capsys.readouterr().err


def test_the_version(monkeypatch, capsys):
    called(monkeypatch, '--version')
    assert capsys.readouterr().out == f'{kd_jax.__version__}\n'


def test_stock_configs_are_those_of_the_folder():
    assert set(stock()) == {path.stem for path in (REPOSITORY / 'configs').glob('*.py')} - {
        '__init__',
        'common',
        'methods',
    }
