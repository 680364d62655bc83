"""A search that was cut off, or whose files were damaged, decides as it would have."""

import json
from types import SimpleNamespace

import pytest
from drill import outcome
from helpers import random_splits, save_npz
from studies import search_of

from kd_jax import search, search_trials, train
from kd_jax.errors import UserError
from kd_jax.train_log import Progress
from kd_jax.workdir import RunDirectory


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
    assert not search_trials.is_pruned(found.study, trial, 10, 0.5)
    assert search_trials.is_pruned(found.study, trial, 20, 0.25)
    assert search_trials.is_pruned(
        found.study, trial, 20, 0.25
    )  # after a kill, from the checkpoint
    assert not search_trials.is_pruned(found.study, trial, 10, 0.5)  # from the one before
    known = found.study.get_trials(deepcopy=False)[4].intermediate_values
    assert known == {10: 0.5, 20: 0.25}


def test_a_trial_that_lost_its_values_gets_those_that_it_would_have_had(data, tmp_path):
    """A kill comes after any line of the journal: what is asked then is what would have been."""
    space = 'objective.kl.tau=1..16 log; optim.learning_rate=0.01..1; objective.kl.weight=0.5'
    whole = search_of(data, tmp_path / 'whole', space, together=2)

    def tried(found):
        return [trial.params for trial in found.study.get_trials(deepcopy=False)]

    while batch := whole._ask(14):
        for trial in batch:
            whole.study.tell(trial, trial.params['objective.kl.tau'] / 16)
    lines = (tmp_path / 'whole/search.journal').read_bytes().splitlines(keepends=True)
    created = [k for k, line in enumerate(lines) if json.loads(line)['op_code'] == 4]
    assert len(created) == len(tried(whole)) == 14
    for number in (1, 12):  # tried at random, and after those before it
        for count in range(5):
            place = tmp_path / f'{number}_{count}'
            place.mkdir()
            kept = b''.join(lines[: created[number] + count])
            kept = kept.replace(b'student of whole', f'student of {place.name}'.encode())
            (place / 'search.journal').write_bytes(kept)
            found = search_of(data, place, space, together=2)
            found._ask(14)
            assert tried(found) == tried(whole)[: number // 2 * 2 + 2]


def test_no_trial_joins_a_batch_that_has_begun(data, tmp_path):
    """Trials of one batch know nothing of each other's ends."""
    found = search_of(data, tmp_path, together=3)
    found.study.tell(found._ask(9)[0], 0.5)
    assert [trial.number for trial in found._ask(9)] == [1, 2]


def test_the_validation_of_a_trial_is_that_of_all_its_seeds(tmp_path):
    """Also where a kill came between their saves."""
    runs = {seed: RunDirectory(tmp_path / f'seed{seed}') for seed in (0, 1)}
    runs[0].path.mkdir()
    assert search_trials.validation({}, runs, 5) is None
    assert search_trials.validation({0: 0.25}, runs, 5) is None
    assert search_trials.validation({0: 0.25, 1: 0.75}, runs, 5) == 0.5
    lines = [{'step': step, 'split': 'val', 'top1': step / 10} for step in (5, 10)]
    runs[0].metrics.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    assert search_trials.validation({1: 1.0}, runs, 5) == 0.75
    assert search_trials.validation({1: 1.0}, runs, 15) is None


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
