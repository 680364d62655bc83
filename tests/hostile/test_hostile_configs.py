"""Configs that are no studies, or no files at all."""

import os

import pytest
from refusals import refused

STUDY = 'from configs import common\n\n\ndef get_config():\n    c = common.study()\n'
RUN = "    c.runs.alone = common.run(c, 'cnn', common.labels())\n"
# what the file holds, what the sentence says
CONFIGS = {
    'ends the program': (
        'import sys\n\n\ndef get_config():\n    sys.exit(3)\n',
        'line 5: SystemExit',
    ),
    'ends it at once': ("raise SystemExit('bye')\n", 'line 1: SystemExit: bye'),
    'is interrupted': ('def get_config():\n    raise KeyboardInterrupt\n', 'KeyboardInterrupt'),
    'returns nothing': (STUDY + RUN, 'returns nothing from get_config()'),
    'returns a dict': ('def get_config():\n    return {}\n', 'is not a study'),
    'returns another config': (
        'from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict()\n',
        'is not a study',
    ),
    'has no function': ('c = 1\n', 'has no function get_config()'),
    'holds nothing': ('', 'has no function get_config()'),
    'is no Python': ('def get_config(:\n', 'line 1: SyntaxError'),
    'holds zeros': ('\0' * 9, 'SyntaxError'),
    'raises': ('def get_config():\n    raise ValueError(7)\n', 'line 2: ValueError: 7'),
    'has no end': ('def get_config():\n    return get_config()\n', 'RecursionError'),
    'imports what is not there': ('import nowhere\n', 'line 1: ModuleNotFoundError'),
    'asks': ('input()\n', 'line 1: EOFError'),
    'has no runs': (STUDY + '    return c\n', 'run'),
    'lost its data': (STUDY + RUN + '    del c.data\n    return c\n', "has no field 'data'"),
    'lost its epochs': (
        STUDY + RUN + '    del c.runs.alone.epochs\n    return c\n',
        "runs.alone has no field 'epochs'",
    ),
    'has one more': (STUDY + RUN + '    c.tau = 1\n    return c\n', "field of the study 'tau'"),
    'has one more in its run': (
        STUDY + RUN + '    c.runs.alone.tau = 1\n    return c\n',
        "field of runs.alone 'tau'",
    ),
    'has a run that is a number': (
        STUDY + '    c.runs.alone = 3\n    return c\n',
        'runs.alone is 3',
    ),
    'has runs that are a number': (
        STUDY.replace('c = common.study()', 'c = common.study()\n    del c.runs\n    c.runs = 3')
        + '    return c\n',
        'runs is 3',
    ),
}


@pytest.mark.parametrize('name', CONFIGS)
def test_a_config_that_is_no_study(tmp_path, name):
    content, words = CONFIGS[name]
    path = tmp_path / 'study.py'
    path.write_text(content)
    flags = f'--config={path}', f'--workdir={tmp_path / "w"}'
    refused('kd_jax.main', *flags, says=[words], keeps=[tmp_path])
    assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('kind', ['a pipe', 'a device', 'a folder', 'nothing', 'a loop'])
def test_a_config_that_is_no_file(tmp_path, kind):
    path = tmp_path / 'study.py'
    if kind == 'a pipe':
        os.mkfifo(path)
    elif kind == 'a folder':
        path.mkdir()
    elif kind == 'a device':
        path.symlink_to('/dev/zero')
    elif kind == 'a loop':
        path.symlink_to(path)
    flags = f'--config={path}', f'--workdir={tmp_path / "w"}'
    refused('kd_jax.main', *flags, says=[path], keeps=[tmp_path])
    assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('flags', [(), ('--config=',), ('--config', ''), ('--workdir=w',)], ids=str)
def test_no_config(flags):
    refused('kd_jax.main', *flags, says=['configs/digits.py'])
