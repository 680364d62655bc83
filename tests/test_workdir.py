"""Run directories: same config or a sentence, whole files, and what a path means."""

import json

import pytest

from kd_jax.errors import UserError
from kd_jax.workdir import RunDirectory, differences, find_run, make_directory, read_json, write_json


def make_run(path, config=None):
    RunDirectory(path).start({'config': config or {}})
    return path


def test_differences_name_the_fields():
    there = {'epochs': 5.0, 'optim': {'lr': 0.1, 'name': 'sgd'}, 'old': 1}
    here = {'epochs': 5.0, 'optim': {'lr': 0.2, 'name': 'sgd'}, 'new': [1]}
    assert differences(here, there) == [
        'optim.lr: 0.1 there, 0.2 here',
        'old: 1 there, nothing here',
        'new: nothing there, [1] here',
    ]
    assert differences(here, here) == []


def test_another_config_is_refused_and_the_directory_untouched(tmp_path):
    run = RunDirectory(make_run(tmp_path / 'r', {'tau': [1, 2]}))
    before = (run.path / 'config.json').read_bytes()
    run.check_same({'tau': (1, 2)})
    with pytest.raises(UserError, match=r'another config \(tau: \[1, 2\] there, \[4\] here\); choose another --workdir'):
        run.check_same({'tau': (4,)})
    assert (run.path / 'config.json').read_bytes() == before


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / 'x.json'
    write_json(path, {'a': 1})
    with pytest.raises(TypeError):
        write_json(path, {'a': object()})
    assert read_json(path) == {'a': 1}


def test_damaged_json_is_one_sentence(tmp_path):
    (tmp_path / 'x.json').write_text('{"a": ')
    with pytest.raises(UserError, match='cannot be read as JSON'):
        read_json(tmp_path / 'x.json')


def test_metrics_after_a_step_are_forgotten(tmp_path):
    run = RunDirectory(make_run(tmp_path / 'r'))
    lines = [json.dumps({'step': step}) for step in (10, 20, 30)]
    run.metrics.write_text('\n'.join(lines) + '\n{"step": 4')  # cut short by a kill
    run.forget_after(20)
    assert run.metrics.read_text() == ''.join(line + '\n' for line in lines[:2])


def test_a_path_means_a_seed_or_the_same_seed_of_a_run(tmp_path):
    for seed in (0, 2, 11):
        make_run(tmp_path / 'study' / 'teacher' / f'seed{seed}')
    run = tmp_path / 'study' / 'teacher'
    assert find_run(run / 'seed11', 2).path == run / 'seed11'
    assert find_run(run, 2).path == run / 'seed2'
    assert find_run(run, 5).path == run / 'seed0'
    with pytest.raises(
        UserError, match=r'is a study, not a run; name one of its runs, such as .*/study/teacher \(it has teacher\)'
    ):
        find_run(tmp_path / 'study', 0)
    with pytest.raises(UserError, match='neither a run of this study nor the workdir of a run'):
        find_run(tmp_path / 'nothing', 0)


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot write to .*/file/x: Not a directory; choose another --workdir'):
        make_directory(tmp_path / 'file' / 'x')
