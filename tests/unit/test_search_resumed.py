"""A search that was cut off, or whose files were damaged, decides as it would have."""

from types import SimpleNamespace

import pytest
from drill import outcome
from helpers import random_splits, save_npz
from studies import search_of

from kd_jax import search, train
from kd_jax.errors import UserError
from kd_jax.train_log import Progress


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return save_npz(tmp_path_factory.mktemp('data') / 'three.npz', random_splits())


def states(found):
    return [trial.state.name for trial in found.study.get_trials(deepcopy=False)]


def test_a_validation_is_told_once_and_decides_again_where_the_search_was_cut_off(data, tmp_path):
    found = search_of(data, tmp_path)
    for trial in found._ask(5)[:4]:  # as many as the median needs
        trial.report(0.5, 10)
        trial.report(0.75, 20)
        found.study.tell(trial, 0.5)
    (trial,) = found._ask(5)
    assert not search._report(found.study, trial, 10, 0.5)
    assert search._report(found.study, trial, 20, 0.25)
    assert search._report(found.study, trial, 20, 0.25)  # after a kill, from the checkpoint
    assert not search._report(found.study, trial, 10, 0.5)  # from the one before
    known = found.study.get_trials(deepcopy=False)[4].intermediate_values
    assert known == {10: 0.5, 20: 0.25}


@pytest.mark.parametrize(('begun', 'expected'), [(True, 'RUNNING'), (False, 'FAIL')])
def test_damage_fails_no_trial_but_a_value_that_is_refused_does(
    data, tmp_path, monkeypatch, begun, expected
):
    found = search_of(data, tmp_path)
    batch = found._ask(2)
    if begun:
        for trial in batch:
            (tmp_path / f'trial{trial.number:04d}/seed0').mkdir(parents=True)
            assert search._runs(found, trial)[0].path.exists()

    def refuse(*_):
        raise UserError('no')

    monkeypatch.setattr(search.Study, 'check', refuse)
    with pytest.raises(UserError, match='^no$'):
        found._train(batch, lambda: False)
    assert states(found) == [expected] * 2


@pytest.mark.parametrize('whole', [True, False])
def test_a_winner_that_lost_files_is_trained_again_alone(data, tmp_path, monkeypatch, whole):
    found, trained = search_of(data, tmp_path), []
    batch = found._ask(2)
    monkeypatch.setattr(search, 'is_whole', lambda _: whole)
    monkeypatch.setattr(search.Study, 'check', lambda _: None)
    monkeypatch.setattr(search.Study, 'train', lambda study, *_, **__: trained.append(study.chosen))
    search._restore(found, batch[1], lambda: False)
    assert [list(names) for names in trained] == ([] if whole else [['trial0001']])


def job(name, val):
    timing = SimpleNamespace(total_steps=30)
    return SimpleNamespace(
        job=SimpleNamespace(name=name, seed=0, run=SimpleNamespace(timing=timing)),
        recorder=SimpleNamespace(val=val),
    )


def test_those_without_a_validation_and_those_at_their_end_are_not_pruned():
    asked = []
    logs = [job('a', {'top1': 0.5}), job('b', {}), job('c', {'top1': 0.25})]

    def prune(step, validated):
        asked.append((step, validated))
        return {('c', 0)}

    assert train._unpruned(prune, logs, 20) == logs[:2]
    assert train._unpruned(prune, logs, 30) == train._unpruned(None, logs, 20) == logs
    assert asked == [(20, {('a', 0): {'top1': 0.5}, ('c', 0): {'top1': 0.25}})]


def test_the_last_validation_is_that_of_the_log():
    lines = [{'step': step, 'split': split} for step in (10, 20) for split in ('train', 'val')]
    assert Progress(lines=lines).last_validation() == {'step': 20, 'split': 'val'}
    assert Progress(lines=lines[:1]).last_validation() == Progress().last_validation() == {}


def test_the_drill_knows_the_trials_that_are_not_read_again(data, tmp_path):
    found = search_of(data, tmp_path)
    first, second, third = found._ask(3)
    found.study.tell(first, 0.5)
    result = tmp_path / f'trial{second.number:04d}/seed0/result.json'
    result.parent.mkdir(parents=True)
    result.write_text('{}')
    before = (tmp_path / 'search.journal').read_bytes()
    assert outcome.ended_trials(tmp_path) == {'trial0000', 'trial0001'} and third.number == 2
    assert (tmp_path / 'search.journal').read_bytes() == before
    assert outcome.ended_trials(tmp_path / 'trial0001') == set()
    assert [path.name for path in (tmp_path / 'trial0001').iterdir()] == ['seed0']
