"""launch/: several processes on one machine, the Cloud TPU commands, the notebook."""

import ast
import importlib
import inspect
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from operator import attrgetter
from pathlib import Path

import nbformat
import pytest
from helpers import REPOSITORY, environment
from launches import CLOUD, LOCAL, NOTEBOOK, local

import kd_jax as kd
from kd_jax import config


@pytest.fixture
def stub(tmp_path):
    """Stands in for Python: says how it was started; waits for a signal or fails as
    BEHAVIOUR tells its process.
    """
    path = tmp_path / 'python'
    path.write_text("""#!/usr/bin/env bash
process=${@: -1}
process=${process#--process=}
echo "started with $* and $XLA_FLAGS"
trap 'echo "process $process got TERM"; [[ -n $STUBBORN ]] || exit 143' TERM
trap 'echo "process $process got INT"; exit 130' INT
case " $BEHAVIOUR " in
*" $process=wait "*) while :; do sleep 0.1; done ;;
*" $process=fail "*) sleep 0.5; exit 3 ;;
esac
""")
    path.chmod(0o755)
    return {'PYTHON': str(path), 'KD_JAX_PORT': '4567', 'STUBBORN': ''}


def test_every_process_gets_the_flags_its_number_and_its_devices(stub):
    done = local(2, '--config=a b.py', '--config.seeds=(0,)', devices=3, BEHAVIOUR='', **stub)
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    for line, number, prefix in zip(lines, (1, 0), ('[1] ', ''), strict=True):
        assert line.startswith(
            f'{prefix}started with -m kd_jax.main --config=a b.py --config.seeds=(0,) '
            f'--coordinator=localhost:4567 --processes=2 --process={number} and '
        )
        assert line.endswith(' --xla_force_host_platform_device_count=3')


@pytest.mark.parametrize('failing', [0, 1])
def test_when_one_process_fails_the_others_are_stopped_and_its_status_is_returned(stub, failing):
    done = local(2, '--config=x', BEHAVIOUR=f'{failing}=fail {1 - failing}=wait', **stub)
    assert done.returncode == 3
    assert f'process {1 - failing} got TERM' in done.stdout
    assert f'process {failing} ended with status 3; stopping the others' in done.stderr


def test_a_process_that_does_not_stop_is_killed(stub):
    begin = time.monotonic()
    done = local(
        2,
        '--config=x',
        BEHAVIOUR='0=fail 1=wait',
        **stub | {'STUBBORN': 'yes', 'KD_JAX_PATIENCE': '2'},
    )
    assert done.returncode == 3
    assert 'process 1 got TERM' in done.stdout
    assert 1.0 < time.monotonic() - begin < 15


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_process(stub, number):
    env = environment(BEHAVIOUR='0=wait 1=wait', **stub)
    command = [str(LOCAL), '2', '--config=x']
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a background job starts with it ignored, and so would its children
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        for _ in range(2):
            assert 'started with' in process.stdout.readline()
        time.sleep(0.5)  # until the stubs have set their traps
        process.send_signal(number)
        out, error = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert sorted(out.splitlines()) == [
        f'[1] process 1 got {number.name[3:]}',
        f'process 0 got {number.name[3:]}',
    ]
    assert error == ''


@pytest.mark.parametrize(
    'arguments, extra, sentence',
    [
        ((), {}, 'usage: launch/local.sh PROCESSES --config=CONFIG'),
        (('0', '--config=x'), {}, 'usage: '),
        (('two', '--config=x'), {}, 'usage: '),
        (
            ('2', '--config=x'),
            {'KD_JAX_DEVICES': 'x'},
            'KD_JAX_DEVICES is x; it must be the number',
        ),
        (('2', '--config=x'), {'KD_JAX_PATIENCE': '-1'}, 'KD_JAX_PATIENCE is -1; it must be'),
        (
            ('2', '--config=x'),
            {'PYTHON': '/nowhere/python'},
            'there is no Python at /nowhere/python',
        ),
    ],
)
def test_local_refuses_a_mistake_with_one_sentence(arguments, extra, sentence):
    env = environment(**({'PYTHON': sys.executable} | extra))
    done = subprocess.run(
        [str(LOCAL), *arguments], capture_output=True, text=True, env=env, timeout=30, check=False
    )
    assert done.returncode == 2
    assert (
        done.stderr.startswith('error: ')
        and sentence in done.stderr
        and done.stderr.count('\n') == 1
    )


@pytest.fixture(autouse=True)
def no_google(tmp_path_factory, monkeypatch):
    """A `gcloud` that fails, so that no test can reach the real one."""
    gcloud = tmp_path_factory.mktemp('bin') / 'gcloud'
    gcloud.write_text('#!/bin/sh\nexit 99\n')
    gcloud.chmod(0o755)
    monkeypatch.setenv('PATH', f'{gcloud.parent}:{os.environ["PATH"]}')


def cloud(*arguments, path=None, **extra):
    env = environment(**extra) | ({'PATH': str(path)} if path else {})
    return subprocess.run(
        [str(CLOUD), *arguments], capture_output=True, text=True, env=env, timeout=60, check=False
    )


def dry(verb, *arguments):
    """The commands of a dry run, each as a list of words."""
    done = cloud(verb, 'box', '--zone=us-central1-a', '--dry-run', *arguments)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


FLAGS = (
    '--',
    '--config=configs/digits.py',
    '--config.seeds=(0,)',
    "--config.wandb=it's",
    '--workdir=/mnt/runs/digits',
)


TPU_VM = ['gcloud', 'compute', 'tpus', 'tpu-vm']


ZONE = '--zone=us-central1-a'


@pytest.mark.parametrize(
    'kind',
    [
        'v5litepod-8 v2-alpha-tpuv5-lite',
        'v5p-8 v2-alpha-tpuv5',
        'v6e-16 v2-alpha-tpuv6e',
        'v4-8 tpu-ubuntu2204-base',
    ],
)
def test_create_takes_the_software_version_that_belongs_to_the_type(kind):
    kind, version = kind.split()
    wanted = [*TPU_VM, 'create', 'box', f'--accelerator-type={kind}', f'--version={version}', ZONE]
    assert dry('create', f'--type={kind}') == [wanted]


def test_create_passes_version_spot_and_project_on():
    wanted = [
        *TPU_VM,
        'create',
        'box',
        '--accelerator-type=v9-8',
        '--version=v',
        '--spot',
        ZONE,
        '--project=p',
    ]
    assert dry('create', '--type=v9-8', '--version=v', '--spot', '--project=p') == [wanted]


def test_install_brings_code_that_runs_and_the_bounds_of_requirements(tmp_path):
    make, tar, scp, ssh = dry('install', '--setup=sudo mount /mnt/runs')
    assert make[:2] == ['mkdir', '-p']
    archive = tar[tar.index('-czf') + 1]
    assert scp == [*TPU_VM, 'scp', archive, 'box:kd_jax.tar.gz', '--worker=all', ZONE]
    assert ssh[:6] == [*TPU_VM, 'ssh', 'box'] and ssh[6] == '--worker=all' and ssh[8:] == [ZONE]
    (jax_line,) = re.findall(
        r'^jax([<>=].*)$', (REPOSITORY / 'requirements.txt').read_text(), re.MULTILINE
    )
    assert f"-r requirements.txt 'jax[tpu]{jax_line}'; sudo mount /mnt/runs" in ssh[7]

    here = str(tmp_path / 'kd_jax.tar.gz')
    subprocess.run([here if word == archive else word for word in tar], check=True)
    subprocess.run(['tar', '-xzf', here, '-C', str(tmp_path)], check=True)
    flags = ('--config=configs/digits.py', '--only=nobody', f'--workdir={tmp_path / "runs"}')
    done = subprocess.run(
        [sys.executable, '-m', 'kd_jax.main', *flags],
        capture_output=True, text=True, cwd=tmp_path, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "unknown run 'nobody'" in done.stderr


def test_follow_and_delete():
    ((*start, command, zone),) = dry('follow', '--worker=3')
    assert (start, zone) == ([*TPU_VM, 'ssh', 'box', '--worker=3'], ZONE)
    assert command.startswith('--command=cd kd_jax && tail ')
    assert dry('delete') == [[*TPU_VM, 'delete', 'box', ZONE]]


def test_all_is_create_install_run_follow_and_never_delete():
    *commands, last = dry('all', '--type=v6e-16', *FLAGS)
    assert commands == dry('create', '--type=v6e-16') + dry('install') + dry('run', *FLAGS) + dry(
        'follow'
    )
    assert last == [
        'done;',
        'delete',
        'the',
        'TPU',
        'with:',
        'launch/cloud_tpu.sh',
        'delete',
        'box',
        ZONE,
    ]


@pytest.fixture
def worker(tmp_path):
    """A `gcloud` that runs a worker's commands here, in the home directory of a
    worker with kd_jax installed.
    """
    home, bin_ = tmp_path / 'home', tmp_path / 'bin'
    python = home / 'kd_jax' / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text('#!/usr/bin/env bash\nsleep 1.5\nprintf "<%s>" "$@"\nexit 3\n')
    bin_.mkdir()
    find = 'for word; do case $word in --command=*) command=${word#*=} ;; esac; done'
    (bin_ / 'gcloud').write_text(f'#!/usr/bin/env bash\n{find}\ncd && eval "$command"\n')
    for file in (python, bin_ / 'gcloud'):
        file.chmod(0o755)
    return {'path': f'{bin_}:{os.environ["PATH"]}', 'HOME': str(home)}


def test_run_returns_at_once_and_follow_ends_with_the_run_and_its_status(worker):
    begin = time.monotonic()
    done = cloud('run', 'box', ZONE, *FLAGS, **worker)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 1.5
    twice = cloud('run', 'box', ZONE, *FLAGS, **worker)
    assert twice.returncode == 2 and 'a run is still going on here' in twice.stderr
    followed = cloud('follow', 'box', ZONE, **worker)
    assert followed.returncode == 3
    wanted = ''.join(
        f'<{word}>' for word in ('-m', 'kd_jax.main', *FLAGS[1:], '--coordinator=auto')
    )
    assert followed.stdout.splitlines()[-1] == wanted


def test_run_needs_an_installation(worker):
    shutil.rmtree(Path(worker['HOME']) / 'kd_jax')
    done = cloud('run', 'box', ZONE, *FLAGS, **worker)
    assert done.returncode == 2 and 'kd_jax is not installed here; install it first' in done.stderr


@pytest.mark.parametrize(
    'arguments, sentence',
    [
        ((), 'usage: launch/cloud_tpu.sh VERB NAME'),
        (('create',), 'usage: '),
        (('--dry-run', 'create'), 'usage: '),
        (
            ('make', 'box', ZONE),
            "unknown verb 'make'; it is create, install, run, follow, delete or all",
        ),
        (('delete', 'box'), 'delete needs the zone'),
        (('create', 'box', ZONE), 'create needs the type'),
        (('all', 'box', ZONE, *FLAGS), 'all needs the type'),
        (
            ('create', 'box', ZONE, '--type=v9-8', '--dry-run'),
            'no default software version for the type v9-8',
        ),
        (('create', 'box', ZONE, '--tpye=v6e-8'), 'unknown option --tpye=v6e-8; allowed: --zone='),
        (('run', 'box', ZONE), 'run needs the flags of kd_jax.main after --'),
        (
            ('run', 'box', ZONE, '--', '--config=configs/digits.py'),
            'at least --config= and --workdir=',
        ),
        (
            ('run', 'box', ZONE, '--', '--config=c', '--workdir=gs://b/x'),
            'gs:// is not supported yet (--workdir)',
        ),
        (
            ('run', 'box', ZONE, *FLAGS, '--config.data.path=gs://b'),
            'gs:// is not supported yet (--config.data.path)',
        ),
        (('run', 'box', ZONE, *FLAGS, '--processes=4'), '--processes=4 is set by this script'),
    ],
)
def test_cloud_refuses_a_mistake_with_one_sentence(arguments, sentence):
    done = cloud(*arguments)
    assert done.returncode == 2
    assert done.stdout == ''
    assert (
        done.stderr.startswith('error: ')
        and sentence in done.stderr
        and done.stderr.count('\n') == 1
    )


def test_without_gcloud_one_sentence_says_where_it_is(tmp_path):
    (tmp_path / 'bash').symlink_to(shutil.which('bash'))
    done = cloud('delete', 'box', ZONE, path=tmp_path)
    assert done.returncode == 2
    assert 'gcloud is not installed; see https://cloud.google.com/sdk/docs/install' in done.stderr


def test_the_notebook_is_valid_and_holds_no_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert len(cells) >= 6
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


def test_everything_that_the_notebook_names_exists():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    text = '\n'.join(cell.source for cell in cells)
    assert {'kd.distill', 'kd.make_train_step', 'kd.objectives.logits.kl'} <= {
        name for name in re.findall(r'\bkd(?:\.\w+)+', text) if attrgetter(name[3:])(kd)
    }
    commands = re.findall(r'python -m (kd_jax\.\w+) --config=(\S+?)`', text)
    assert commands == [('kd_jax.main', 'configs/digits.py')]
    configs = set(re.findall(r'--config=(configs/\w+\.py(?::\w+)?)', text))
    assert configs == {'configs/digits.py', 'configs/digits.py:all'}
    for name in configs:
        file, _, argument = name.partition(':')
        module = importlib.import_module(file.removesuffix('.py').replace('/', '.'))
        assert module.get_config(argument).runs.student
    pages = set(re.findall(r'`(docs/\S+)`', text))
    assert pages and all((REPOSITORY / page).exists() for page in pages)

    tree = ast.parse('\n'.join(cell.source for cell in cells if cell.cell_type == 'code'))
    constants = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ('DATA', 'SETTINGS'):
            constants[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
    known = {*inspect.signature(kd.distill).parameters, *(f.name for f in fields(config.Run))}
    assert constants['SETTINGS'].keys() <= known | config.GROUPS.keys()
    assert kd.data.load(constants['DATA']).info.count['labelled'] == 50
    assert kd.data.load(constants['DATA'] | {'labels_seed': 1})  # as its questions say


def setup_of_the_notebook():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    return next(cell for cell in cells if cell.get('id') == 'setup').source


def test_a_failing_command_in_the_notebook_raises(tmp_path, monkeypatch):
    setup = setup_of_the_notebook()
    start = setup.index('def run(')
    scope = {'subprocess': subprocess, 'sys': sys, 'shlex': shlex}
    exec(setup[start : setup.index('\n\n\n', start)], scope)
    monkeypatch.setenv('PYTHONPATH', str(REPOSITORY))
    with pytest.raises(RuntimeError, match=r'kd_jax\.report .* ended with status 2'):
        scope['run']('kd_jax.report', tmp_path / 'nothing')


def test_outside_of_a_copy_the_notebook_asks_for_its_address(tmp_path, monkeypatch):
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match='set REPOSITORY to the address of kd_jax'):
        exec(setup_of_the_notebook(), {})
