"""Every mistake is one sentence on stderr with the fix, exit status 2, and
nothing already saved is touched.
"""

import json
import shutil

import commands
import numpy as np
import pytest
from helpers import SMALL, TINY, assert_refused, environment, random_splits, run_main, save_npz


def snapshot(directory):
    return {path: path.read_bytes() for path in directory.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A finished study of one run."""
    workdir = tmp_path_factory.mktemp('finished') / 'study'
    done = run_main(*TINY, f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.parametrize(
    ('flags', 'parts'),
    [
        (['--config=configs/nothing.py'], ['configs/nothing.py']),
        (['--config=configs/digits.py:sum'], ["unknown config argument 'sum'", 'regime=few | all']),
        ([], ['--config']),
        (
            ['--config=configs/digits.py', '--config.runs.alone.optim.learning_rte=1'],
            ['learning_rte', 'learning_rate'],
        ),
        (['--config=configs/digits.py', '--config.runs.alone.epochs=many'], ['many']),
        (['--config=configs/digits.py', '--confg=1'], ['confg', 'kd_jax.main --help']),
        (
            ['--config', 'configs/digits.py', '--config.runs.studnt.epochs=1'],
            ["unknown run 'studnt'; did you mean 'student'?"],
        ),
        (
            ['--config=configs/digits.py', '--config.runs.alone.epochs.least=1'],
            ['runs.alone.epochs is 60.0', "'least'"],
        ),
        (
            ['--config=configs/digits.py', '--config.runs.student.objective.kl.tua=1'],
            [
                "unknown field of runs.student.objective.kl 'tua'",
                "did you mean 'tau'? known: loss, only_where, ",
            ],
        ),
        (
            ['--config=configs/digits.py', '--config.runs.student.objective.at.weight=1'],
            [
                "term of runs.student.objective 'at'",
                "a config file adds terms: run.objective.at = common.term('at')",
            ],
        ),
        (['--config=configs/digits.py', 'digits'], ["unexpected argument 'digits'"]),
        (
            [*TINY, '--config.runs.alone.model.name=ccn'],
            ["unknown model 'ccn'", "did you mean 'cnn'"],
        ),
        (
            [*TINY, '--config.data.source=digit'],
            ["unknown value of data.source 'digit'", "did you mean 'digits'"],
        ),
        (
            [*TINY, '--config.data.source=tfds', '--config.data.name=cifar11'],
            ["unknown TFDS data set 'cifar11'", "'cifar10'"],
        ),
        (
            [*TINY, '--config.data.source=idx', '--config.data.path=/nowhere'],
            ['/nowhere', '--config.data.path=DIR'],
        ),
        (
            [*TINY, '--config.runs.alone.select=bset'],
            ["unknown value of runs.alone.select 'bset'", "did you mean 'best'"],
        ),
        ([*TINY, '--config.runs.alone.optim.name=sdg'], ["'sdg'", "did you mean 'sgd'"]),
        ([*TINY, '--config.runs.alone.optim.learning_rate=-1.'], ['learning_rate', '-1']),
        ([*TINY, '--config.runs.alone.optim.freeze=("stemm",)'], ["'stemm'", 'matches']),
        (
            [*TINY, '--config.runs.alone.epochs=0.'],
            ['runs.alone.epochs is 0.0; it must be greater than 0'],
        ),
        ([*TINY, '--config.parallel=pmp'], ["unknown value of parallel 'pmp'"]),
        ([*TINY, '--only=alon'], ["unknown run 'alon'", "did you mean 'alone'"]),
        (
            [*SMALL, '--config.runs.student.objective.kl.tau=0.'],
            ['objective.kl.tau is 0.0', 'greater than 0'],
        ),
        (
            [*SMALL, '--only=student'],
            ['teacher', 'does not exist', 'if with --only then that run too'],
        ),
        (
            [*SMALL, '--config.runs.student.teachers=("/nowhere",)', '--only=student'],
            ['/nowhere is neither a run'],
        ),
        ([*SMALL, '--config.runs.teacher.init=student'], ['in a circle: ', 'student']),
        (
            [*SMALL, '--config.runs.alone.teachers=("student",)', '--only=alone'],
            ['student', 'does not exist'],
        ),
    ],
    ids=lambda value: (
        ' '.join(v.rsplit('.', 1)[-1] for v in value[-2:]) if isinstance(value, list) else None
    ),
)
def test_refused_before_training(flags, parts, tmp_path):
    assert_refused(run_main(*flags, f'--workdir={tmp_path / "w"}'), *parts)
    assert not list(tmp_path.rglob('checkpoints'))


def test_a_batch_that_the_devices_cannot_share(tmp_path):
    done = run_main(*TINY, '--config.runs.alone.batch_size=63', f'--workdir={tmp_path}', devices=2)
    assert_refused(
        done,
        'a batch of 63 cannot be shared equally by 2 devices',
        '--config.runs.alone.batch_size=64',
    )


@pytest.mark.parametrize(
    ('text', 'parts'),
    [
        ('from configs import nothing', [', line 1: ImportError', "'nothing'"]),
        ('def get_config():\n    return (', [', line 2: SyntaxError', 'never closed']),
        ('config = 1', ['has no function get_config()', 'configs/']),
        (
            (
                'from configs import common\ndef get_config():\n    run = '
                "common.run(common.study(), '')\n    run.teachers = ('a')"
            ),
            [', line 4: TypeError', "'teachers'", "<class 'tuple'>"],
        ),
    ],
    ids=['import', 'syntax', 'no get_config', 'type'],
)
def test_a_config_file_with_a_mistake(text, parts, tmp_path):
    (tmp_path / 'mine.py').write_text(text)
    assert_refused(run_main(f'--config={tmp_path}/mine.py', f'--workdir={tmp_path}/w'), *parts)


def test_a_wrong_field_of_soft_targets(tmp_path):
    flags = ('--teacher=x', '--data=configs/digits.py', '--data.augment.crp=1')
    done = commands.run('kd_jax.soft_targets', *flags, env=environment())
    assert_refused(done, "unknown field of augment 'crp'; did you mean 'crop'?")


def test_a_config_of_soft_targets_that_is_not_there():
    flags = ('--teacher=x', '--data=configs/nothing.py')
    done = commands.run('kd_jax.soft_targets', *flags, env=environment())
    assert_refused(done, "cannot read the config 'configs/nothing.py'")


def test_a_workdir_with_another_config(finished):
    before = snapshot(finished)
    done = run_main(*TINY, '--config.runs.alone.optim.learning_rate=0.01', f'--workdir={finished}')
    assert_refused(done, 'optim.learning_rate: 0.05 there, 0.01 here', 'choose another --workdir')
    assert snapshot(finished) == before


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    assert_refused(
        run_main(*TINY, f'--workdir={tmp_path}/file/w'),
        'cannot write to',
        'choose another --workdir',
    )


def teach(workdir, *flags):
    """A student of the finished run in `workdir`."""
    student = ('--only=student', f'--config.runs.student.teachers=("{workdir}",)', *flags)
    return run_main(*SMALL, *student, f'--workdir={workdir.parent.parent / "student"}')


def test_a_teacher_that_is_unfinished_or_damaged_or_a_whole_study(finished, tmp_path):
    copy = tmp_path / 'study'
    shutil.copytree(finished, copy)
    assert_refused(teach(copy), 'is a study, not a run', str(copy / 'alone'))
    step = json.loads((copy / 'alone/seed0/result.json').read_text())['checkpoint']
    files = [
        path
        for path in (copy / f'alone/seed0/checkpoints/{step}/state').rglob('*')
        if path.is_file()
    ]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(content[: len(content) // 2])
    assert_refused(teach(copy / 'alone'), f'the checkpoint of step {step}', 'run its study again')
    (copy / 'alone/seed0/result.json').unlink()
    assert_refused(teach(copy / 'alone'), 'is unfinished')


def test_a_teacher_with_other_classes_or_other_channels(finished, tmp_path):
    data = save_npz(tmp_path / 'three.npz', random_splits(classes=3))
    flags = (
        '--config.data.source=npz',
        f'--config.data.path={data}',
        '--config.runs.student.data.labels_per_class=0',
    )
    assert_refused(teach(finished / 'alone', *flags), 'has 10 classes', '3')
    data = save_npz(tmp_path / 'ten.npz', random_splits(classes=10, channels=3, train=300))
    flags = (
        '--config.data.source=npz',
        f'--config.data.path={data}',
        '--config.runs.student.data.labels_per_class=0',
    )
    assert_refused(teach(finished / 'alone', *flags), 'sees images of 1 channel(s)', 'has 3')


@pytest.mark.parametrize('how', ['truncated', 'text'])
def test_a_data_file_that_is_truncated_or_of_another_format(tmp_path, how):
    path = save_npz(tmp_path / 'd.npz', random_splits())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if how == 'truncated' else b'label,pixel\n1,2\n')
    done = run_main(
        *TINY, '--config.data.source=npz', f'--config.data.path={path}', f'--workdir={tmp_path}/w'
    )
    assert_refused(done, str(path))


def test_a_loss_that_becomes_nan_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    """The learning rate rises until the network breaks; before that it was saved."""
    flags = (*TINY, '--config.runs.alone.epochs=20.', '--config.runs.alone.eval_every=0.1')
    flags += (
        '--config.runs.alone.optim.learning_rate=1e6',
        '--config.runs.alone.optim.warmup_epochs=19.',
    )
    done = run_main(*flags, f'--workdir={tmp_path}')
    assert_refused(
        done,
        'the loss of alone seed 0 became',
        'at step',
        'the last good checkpoint is kept',
        'learning_rate',
    )
    step = int(done.stderr.split('at step ')[1].split(':')[0])
    kept = [
        int(p.name) for p in (tmp_path / 'alone/seed0/checkpoints').iterdir() if p.name.isdigit()
    ]
    assert kept and max(kept) < step
    metrics = (tmp_path / 'alone/seed0/metrics.jsonl').read_text()
    assert all(np.isfinite(json.loads(line).get('loss', 0)) for line in metrics.splitlines())
