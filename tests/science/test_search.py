"""Searches: what is tried, what is learnt of it, and what remains when
they are interrupted or shared.
"""

import importlib.util
import json
import signal
import time

import commands
import pytest
from helpers import environment, random_splits, save_npz
from studies import SPACE, final_params, search_of, train

from kd_jax import evaluate, search
from kd_jax.train import Stopped


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return save_npz(tmp_path_factory.mktemp('data') / 'three.npz', random_splits(train=200))


def never():
    return False


def test_a_search_ends_with_the_best_of_its_trials_and_reads_the_test_split_for_it_alone(
    data, tmp_path, monkeypatch
):
    read, original = [], evaluate.evaluate_run

    def evaluated(path, split):
        read.append((path, split))
        return original(path, split)

    monkeypatch.setattr(search.evaluate, 'evaluate_run', evaluated)
    space = SPACE + '; model.width=0.25,0.5'
    found = search_of(data, tmp_path, space, prune=False).go(8, never)
    assert found['counts'] == {'COMPLETE': 8, 'PRUNED': 0, 'FAIL': 0}
    means = [sum(trial['val']) / 2 for trial in found['trials']]
    assert means == sorted(means, reverse=True) and means[0] > 0.8
    assert {trial['params']['model.width'] for trial in found['trials']} == {0.25, 0.5}
    assert len({trial['params']['objective.kl.tau'] for trial in found['trials']}) == 8
    best = found['best']
    assert best['run'] == found['trials'][0]['run'] and best['val'] == found['trials'][0]['val']
    assert read == [(tmp_path / best['run'] / f'seed{seed}', 'test') for seed in (0, 1)]
    results = [json.loads(path.read_text()) for path in tmp_path.glob('trial*/seed*/result.json')]
    assert len(results) == 16 and all(result['test'] is None for result in results)
    for result in results:  # its own numbers are in its own config
        params = next(trial['params'] for trial in found['trials'] if trial['run'] == result['run'])
        config = json.loads(
            (tmp_path / result['run'] / f'seed{result["seed"]}/config.json').read_text()
        )['config']
        assert config['objective']['kl']['tau'] == params['objective.kl.tau']
        assert (config['order_seed'], config['model']['width']) == (0, params['model.width'])
    assert json.loads((tmp_path / 'search.json').read_text()) == found
    table = (tmp_path / 'search.md').read_text().splitlines()
    assert (
        len(table) == 2 + 8 + 2
        and table[0]
        == '| trial | objective.kl.tau | optim.learning_rate | model.width | val top-1 % |'
    )
    assert (tmp_path / 'search.png').read_bytes().startswith(b'\x89PNG')


def test_the_best_config_runs_and_gives_the_same(data, tmp_path):
    found = search_of(data, tmp_path / 'search').go(3, never)['best']
    spec = importlib.util.spec_from_file_location('best', tmp_path / 'search/search_best.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    assert config.runs.student.objective.kl.tau == found['params']['objective.kl.tau']
    results = train(config, tmp_path / 'again')
    assert set(results) == {('student', 0), ('student', 1)}  # the teacher is the search's
    assert [results['student', seed]['val']['top1'] for seed in (0, 1)] == pytest.approx(
        found['val'], abs=0.05
    )
    with config.unlocked():
        config.precision, config.data.val_seed = 'bfloat16', 7
    assert (config.runs.student.precision, config.runs.student.data.val_seed) == ('bfloat16', 7)
    one, other = (
        final_params(tmp_path / 'again', 'student', 0),
        final_params(tmp_path / 'search', found['run'], 0),
    )
    assert max(abs(one[name] - other[name]).max() for name in one) <= 1e-3


def test_bad_trials_are_ended_early_and_diverged_ones_fail(data, tmp_path):
    # fewer bad ones than good ones: the median of the first trials is good
    space = 'objective.kl.tau=4; optim.learning_rate=0.02,0.01,0.03,1e-7,1e-8'
    found = search_of(data, tmp_path, space, together=4).go(12, never)
    assert found['counts']['PRUNED'] >= 1
    assert found['best']['params']['optim.learning_rate'] >= 0.01
    pruned = {f'trial{k:04d}' for k in range(12)} - {trial['run'] for trial in found['trials']}
    for name in pruned:
        assert not list(tmp_path.glob(f'{name}/seed*/result.json'))

    found = search_of(
        data,
        tmp_path / 'wild',
        'optim.learning_rate=0.01,1e30',
        changes={'optim.name': 'sgd'},
        prune=False,
    )
    assert found.go(6, never)['counts']['FAIL'] >= 1


def test_a_search_that_is_stopped_goes_on_with_the_same_trials(data, tmp_path):
    asked = iter(range(10_000))
    with pytest.raises(Stopped):
        search_of(data, tmp_path, prune=False).go(6, lambda: next(asked) == 12)
    begun = {path.name for path in tmp_path.glob('trial*')}
    assert begun and not list(tmp_path.glob('search.json'))
    found = search_of(data, tmp_path, prune=False).go(6, never)
    assert found['counts'] == {'COMPLETE': 6, 'PRUNED': 0, 'FAIL': 0}
    assert begun <= {trial['run'] for trial in found['trials']}
    more = search_of(data, tmp_path, prune=False).go(8, never)
    assert more['counts']['COMPLETE'] == 8 and {t['run'] for t in found['trials']} < {
        t['run'] for t in more['trials']
    }


def test_two_workers_share_a_search(data, tmp_path):
    """Neither takes over what the other is at."""
    one, two = (search_of(data, tmp_path, worker=name, prune=False) for name in ('one', 'two'))
    mine = one._ask(10)
    assert [trial.number for trial in mine] == [0, 1, 2, 3]
    assert [trial.number for trial in two._ask(6)] == [4, 5]
    assert [trial.number for trial in one._ask(6)] == [0, 1, 2, 3]
    search_of(data, tmp_path, worker='two', prune=False).go(6, never)
    assert one.go(6, never)['counts']['COMPLETE'] == 6


def test_the_command_is_stopped_and_goes_on(tmp_path):
    """SIGTERM in a process of its own; the same command ends the search."""
    command = [
        'kd_jax.search', '--config=configs/digits.py',
        f'--workdir={tmp_path}', '--trials=4', '--together=4',
        '--space=objective.kl.tau=1..16 log', '--config.seeds=(0,)',
        '--config.runs.teacher.model.name=cnn', '--config.runs.teacher.epochs=1.',
        '--config.runs.student.epochs=40.', '--config.runs.student.eval_every=1.',
        '--config.tensorboard=False', '--noprune',
    ]  # fmt: skip
    process = commands.Command(*command, env=environment(2))
    end = time.time() + 200
    while (
        time.time() < end
        and not list(tmp_path.glob('trial*/seed0/checkpoints/[0-9]*'))
        and process.poll() is None
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 143 and 'the same command continues' in said, said[-2000:]
    done = commands.run(*command, env=environment(2))
    assert done.returncode == 0, done.stderr
    assert (
        'resumed at step' in done.stdout and '4 trials complete, 0 pruned, 0 failed' in done.stdout
    )
    wrong = commands.run(*command[:-1], '--space=x=1,2', env=environment(1))
    assert wrong.returncode == 2 and len(wrong.stderr.strip().splitlines()) == 1
