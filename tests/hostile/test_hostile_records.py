"""What stands where kd_jax wrote its records: a sentence, and nothing is changed."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import refusals
from helpers import REPOSITORY, random_splits, save_npz
from studies import config_of, train

from configs import common
from kd_jax import report
from kd_jax.evaluate import evaluate_run
from kd_jax.train import Stopped

# What each record may hold instead. `at(...)` changes a valid one.
CONTENT = {
    'nothing': b'',
    'half': b'{"run": "alone", "se',
    'text': b'hello\n',
    'binary': bytes(range(256)),
    'another encoding': '{"run": "ü"}'.encode('utf-16'),
    'a list': b'[]',
    'a number': b'3',
    'null': b'null',
    'not a number': b'NaN',
    'deep': b'[' * 100_000,
    'deep mappings': b'{"a":' * 100_000,
    'an empty mapping': b'{}',
    'a mapping of something else': b'{"a": {"b": [1, 2]}}',
    'a number of 5,000 digits': b'{"seed": ' + b'9' * 5000 + b'}',
    '70 MB': b' ' * 70 * 2**20,
}
KINDS = ('folder', 'fifo', 'device', 'loop')


def at(*path, value):
    def change(node):
        *above, last = path
        for key in above:
            node = node[key]
        if value is None:
            del node[last]
        else:
            node[last] = value

    return change


INFO = {
    'no run': at('run', value=None),
    'a run of lines': at('run', value='a\nb'),
    'a seed in words': at('seed', value='one'),
    'a seed below zero': at('seed', value=-1),
    'a config that is a list': at('config', value=[]),
    'no model': at('config', 'model', value=None),
    'a model that is text': at('config', 'model', value='cnn'),
    'a model without a name': at('config', 'model', value={'width': 1.0}),
    'teachers that are a number': at('config', 'teachers', value=3),
    'teachers of lists': at('config', 'teachers', value=[[]]),
    'an objective that is a list': at('config', 'objective', value=[]),
    'a loss that is a number': at('config', 'objective', value={'kl': 3}),
    'optim that is text': at('config', 'optim', value='sgd'),
    'data that is a list': at('config', 'data', value=[]),
    'a precision that is none': at('config', 'precision', value='float128'),
    'no classes': at('data', 'num_classes', value=0),
    'a trillion classes': at('data', 'num_classes', value=10**12),
    'classes in words': at('data', 'num_classes', value='three'),
    'a shape of two': at('data', 'image_shape', value=[8, 8]),
    'a shape of billions': at('data', 'image_shape', value=[10**9, 10**9, 3]),
    'a shape of halves': at('data', 'image_shape', value=[8.5, 8, 1]),
    'no mean': at('data', 'mean', value=None),
    'a mean in words': at('data', 'mean', value=['half']),
    'an empty mean': at('data', 'mean', value=[]),
    'data in a list': at('data', value=[1]),
    'a learning rate in words': at('learning_rate', value='small'),
}
# These are seen by what uses the run: a teacher, an evaluation.
USED = {
    'a mean of three for one channel': at('data', 'mean', value=[0.5] * 3),
    'a mean that is no number': at('data', 'mean', value=[float('nan')]),
    'a std of zero': at('data', 'std', value=[0.0]),
    'an unknown model': at('config', 'model', 'name', value='no_such_model'),
    'another model': at('config', 'model', 'name', value='resnet8'),
    'an unknown field of the model': at('config', 'model', 'colour', value=3),
    'another width': at('config', 'model', 'width', value=0.5),
    'a width of nothing': at('config', 'model', 'width', value=0.0),
    'a width in words': at('config', 'model', 'width', value='wide'),
    'other classes': at('data', 'num_classes', value=7),
}
RESULT = {
    'no run': at('run', value=None),
    'no checkpoint': at('checkpoint', value=None),
    'a checkpoint in words': at('checkpoint', value='last'),
    'a checkpoint below zero': at('checkpoint', value=-4),
    'a test that is a number': at('test', value=0.5),
    'a top-1 in words': at('test', 'top1', value='good'),
    'a val that is a list': at('val', value=[0.5]),
    'parameters in words': at('params', value='many'),
    'a model that is a list': at('model', value=[]),
    'seconds in words': at('seconds', value='long'),
    'a teacher that is text': at('teacher', value='good'),
}
TABLE = {
    'no table': at('table', value=None),
    'a table of text': at('table', value='table'),
    'a row of text': at('table', 0, value='row'),
    'a row without a run': at('table', 0, 'run', value=None),
    'a row whose seeds are text': at('table', 0, 'seeds', value='0, 1'),
    'a cell that is a number': at('table', 0, 'top-1 %', value=3),
    'a cell in words': at('table', 0, 'top-1 %', value='high'),
    'a mean in words': at('table', 0, 'top-1 %', value={'mean': 'high', 'std': None, 'n': 1}),
    'a cell without a mean': at('table', 0, 'top-1 %', value={'std': 1.0}),
    'gains that are a number': at('gains', value=3),
    'a gain of text': at('gains', value=['more']),
    'a gain without its points': at('gains', value=[{'run': 'a', 'against': 'b'}]),
    'results that are text': at('results', value='good'),
}
LINES = {
    'a line in the middle that is cut': lambda lines: [lines[0][:10], *lines[1:]],
    'a line of text': lambda lines: ['hello', *lines],
    'an empty line': lambda lines: ['', *lines],
    'a list': lambda lines: ['[1, 2]', *lines],
    'a number': lambda lines: ['7', *lines],
    'another kind of line': lambda lines: ['{"a": 1}', *lines],
    'a step in words': lambda lines: ['{"step": "one", "split": "val"}', *lines],
    'a step below zero': lambda lines: ['{"step": -1, "split": "val"}', *lines],
    'a deep line': lambda lines: ['[' * 100_000, *lines],
}


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    """(data, workdir) of a finished run `alone` and one that was stopped, `teacher`."""
    folder = tmp_path_factory.mktemp('study')
    data = save_npz(folder / 'three.npz', random_splits())
    train(config_of(data, alone=(None, {'epochs': 1.0})), folder / 'w')
    asked = iter(range(100))
    with pytest.raises(Stopped):
        train(both(data), folder / 'w', should_stop=lambda: next(asked) == 2)
    return data, folder / 'w'


def both(data):
    return config_of(
        data, alone=(None, {'epochs': 1.0}), teacher=(None, {'epochs': 6.0, 'eval_every': 1.0})
    )


def taught(data, workdir):
    changes = {'teachers': (str(workdir / 'alone'),), 'epochs': 1.0}
    return config_of(data, student=(common.distillation(), changes))


@pytest.fixture
def workdir(study, tmp_path):
    return shutil.copytree(study[1], tmp_path / 'w', symlinks=True)


def refused(action, path):
    """One sentence about `path`, and nothing is changed."""
    told = refusals.refused_here(action, keeps=[path.parents[1]])
    assert str(path) in told or str(path.parent) in told


def change(path, how):
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))


def replace(path, kind):
    path.unlink()
    {
        'folder': path.mkdir,
        'fifo': lambda: os.mkfifo(path),
        'device': lambda: path.symlink_to('/dev/zero'),
        'loop': lambda: path.symlink_to(path.name),
    }[kind]()


def uses(study, workdir):
    """What reads config.json and result.json of `alone`."""
    return {
        'the study again': lambda: train(both(study[0]), workdir, only=('alone',)),
        'a student of it': lambda: train(taught(study[0], workdir), workdir.parent / 'student'),
        'an evaluation': lambda: evaluate_run(workdir / 'alone'),
    }


@pytest.mark.parametrize('file', ['config.json', 'result.json'])
@pytest.mark.parametrize('name', [*CONTENT, *KINDS[:3]])
@pytest.mark.parametrize('use', ['the study again', 'a student of it'])
def test_a_record_of_a_run(study, workdir, file, name, use):
    path = workdir / 'alone/seed0' / file
    if name in KINDS:
        replace(path, name)
    else:
        path.write_bytes(CONTENT[name])
    refused(uses(study, workdir)[use], path)


SHAPES = [('config.json', name, how) for name, how in INFO.items()]
SHAPES += [('result.json', name, how) for name, how in RESULT.items()]


@pytest.mark.parametrize(
    ('file', 'how'), [pytest.param(file, how, id=f'{file}-{name}') for file, name, how in SHAPES]
)
def test_a_record_of_another_shape(study, workdir, file, how):
    path = workdir / 'alone/seed0' / file
    change(path, how)
    for use in uses(study, workdir).values():
        refused(use, path)


COMMANDS = [
    ('config.json', CONTENT['half']),
    ('config.json', CONTENT['deep']),
    ('config.json', CONTENT['70 MB']),
    ('result.json', CONTENT['not a number']),
    ('result.json', CONTENT['an empty mapping']),
    ('result.json', None),
]


@pytest.mark.parametrize(('file', 'content'), COMMANDS)
def test_a_record_that_a_command_reads(study, workdir, file, content):
    path = workdir / 'alone/seed0' / file
    path.unlink()
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    refusals.refused('kd_jax.evaluate', workdir / 'alone', says=[path], keeps=[workdir])
    if file == 'config.json':
        flags = (f'--teacher={workdir / "alone"}', '--data=configs/digits.py')
        refusals.refused('kd_jax.soft_targets', *flags, says=[path], keeps=[workdir])


@pytest.mark.parametrize('name', USED)
def test_a_config_that_does_not_fit(study, workdir, name):
    path = workdir / 'alone/seed0/config.json'
    change(path, USED[name])
    refusals.refused_here(lambda: evaluate_run(workdir / 'alone'), [path.parent], [workdir])


@pytest.mark.parametrize('name', [*CONTENT, *KINDS[:3], *TABLE])
def test_a_table(study, workdir, name):
    path = workdir / 'results.json'
    train(both(study[0]), workdir, only=('alone',))
    if name in TABLE:
        change(path, TABLE[name])
    elif name in CONTENT:
        path.write_bytes(CONTENT[name])
    else:
        replace(path, name)
    refusals.refused('kd_jax.report', workdir, says=[path], keeps=[workdir])


@pytest.mark.parametrize('name', LINES)
def test_a_log_when_a_run_resumes_or_is_plotted(study, workdir, name):
    path = workdir / 'teacher/seed0/metrics.jsonl'
    lines = LINES[name](path.read_text().splitlines())
    path.write_text('\n'.join(lines) + '\n')
    refused(lambda: train(both(study[0]), workdir), path)
    refused(lambda: report.read_metrics(path.parent), path)


@pytest.mark.parametrize('kind', KINDS[:3])
def test_a_log_that_is_no_file(study, workdir, kind):
    path = workdir / 'teacher/seed0/metrics.jsonl'
    replace(path, kind)
    refused(lambda: train(both(study[0]), workdir), path)


@pytest.mark.parametrize('left', range(1, 40, 6))
def test_the_half_of_a_last_line_is_dropped_and_written_again(study, workdir, left):
    path = workdir / 'teacher/seed0/metrics.jsonl'
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[-1][:left])
    train(both(study[0]), workdir)
    assert path.read_text().startswith(whole)
    steps = [line['step'] for line in report.read_metrics(path.parent)]
    assert steps == sorted([3, 6, 9, 12, 15, 18] * 2)


def test_reading_a_record_imports_nothing(tmp_path):
    """Names of classes and modules in a record are text."""
    (tmp_path / 'intruder.py').write_text('raise SystemExit("an intruder ran")')
    (tmp_path / 'x.json').write_text('{"py/object": "intruder.X", "__reduce__": ["intruder"]}')
    code = (
        'import sys; from etils import epath; from kd_jax import records;'
        f'records.read(epath.Path({str(tmp_path / "x.json")!r}), dict, "")'
    )
    environment = os.environ | {'PYTHONPATH': str(tmp_path)}
    command = [sys.executable, '-c', code]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)
