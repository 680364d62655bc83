"""Spaces of a search: what is refused before anything trains."""

import pytest
from helpers import random_splits, save_npz
from studies import SPACE, search_of, search_study

from kd_jax import search
from kd_jax.errors import UserError


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return save_npz(tmp_path_factory.mktemp('data') / 'three.npz', random_splits(train=200))


def never():
    return False


@pytest.mark.parametrize(
    ('space', 'words'),
    [
        ('', '--space is empty'),
        (
            'objective.kl.tua=1..2',
            (
                "unknown field of runs.student in --space 'objective.kl.tua'; "
                "did you mean 'objective.kl.tau'"
            ),
        ),
        ('objective.kl=1..2', 'which is a group; name one of its fields: .*tau'),
        ('objective.kl.tau', 'write each field once'),
        ('objective.kl.tau=4..1', 'LOW..HIGH'),
        ('objective.kl.tau=0..1 log', 'above 0 for weights and with log'),
        ('objective.kl.weight=0..1', 'above 0 for weights'),
        ('model.name=1..2', 'LOW..HIGH'),
        ('batch_size=20,large', 'or different values'),
        ('batch_size=20,20', 'or different values'),
        ('model.name=cnn,resnet9', "unknown model 'resnet9'; did you mean"),
        ('objective.kl.tau=-1,-2', 'must be greater than 0'),
    ],
)
def test_a_space_that_makes_no_sense_is_one_sentence(data, tmp_path, space, words):
    with pytest.raises(UserError, match=words) as caught:
        search_of(data, tmp_path, space).go(4, never)
    assert '\n' not in str(caught.value)


def test_a_space_is_checked_whole_before_anything_is_written(data, tmp_path):
    space = 'model.name=cnn,resnet8; model.width=0.25,0.0001; objective.kl.tau=1..4'
    with pytest.raises(
        UserError, match=r'^--space allows .*model.width=0.0001.*leaves none of a layer'
    ):
        search_of(data, tmp_path, space)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r'^--space allows objective.kl.tau=-3: runs.student'):
        search_of(data, tmp_path, 'objective.kl.tau=-3..-1')
    assert search_of(data, tmp_path, 'objective.kl.tau=1..4').space


def test_trials_are_the_same_however_often_a_search_is_cut_off(data, tmp_path):
    def told(search, count):
        while len(search.study.get_trials(deepcopy=False)) < count:
            (trial,) = search._ask(count)
            search.study.tell(trial, trial.params['objective.kl.tau'] / 16)

    def tried(search):
        return [trial.params for trial in search.study.get_trials(deepcopy=False)]

    whole = search_of(data, tmp_path / 'whole', together=1)
    told(whole, 14)
    for count in (1, 5, 11, 14):
        told(search_of(data, tmp_path / 'cut', together=1), count)
    assert tried(search_of(data, tmp_path / 'cut', together=1)) == tried(whole)


def test_other_mistakes_are_one_sentence(data, tmp_path):
    with pytest.raises(
        UserError, match='--run=pupil is no run of the study; it has student, teacher'
    ):
        search.Search(search_study(data), tmp_path, 'pupil', SPACE, together=2)
    with pytest.raises(UserError, match='--together is 0'):
        search_of(data, tmp_path, together=0)
    with pytest.raises(UserError, match='has a sweep or patience'):
        search_of(data, tmp_path, changes={'patience': 2})
    with pytest.raises(UserError, match='--storage=nodb://x cannot be used'):
        search_of(data, tmp_path, storage='nodb://x')
    search_of(data, tmp_path / 'a')
    with pytest.raises(UserError, match='holds a search with another space'):
        search_of(data, tmp_path / 'a', 'objective.kl.tau=1..2')
    with pytest.raises(UserError, match='holds a search with another run'):
        search_of(data, tmp_path / 'a', changes={'epochs': 4.0})
