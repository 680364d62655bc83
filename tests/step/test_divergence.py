"""A loss that is not finite: the first thing that was not is named."""

import jax
import numpy as np
import pytest
from dispatches import executor_of

from kd_jax.divergence import explained
from kd_jax.errors import Diverged
from kd_jax.models.common import Output
from kd_jax.parallel import Parallel

NAN, GOOD = float('nan'), np.ones((1, 2, 3), np.float32)
BAD = GOOD * np.array([1, 1, NAN], np.float32)


def told(executor, losses, *, step=4, first=0, **batch):
    """The sentence about losses after `step` updates, of a batch of these images and teachers."""
    usual = {'image': GOOD, 'teachers': {}}
    executor.prepared = lambda step: usual | batch
    error = Diverged('the loss of alone seed 0 became nan at step 5', step, losses)
    return str(explained(error, executor, executor.jobs[0], first))


@pytest.fixture(scope='module')
def executor():
    return executor_of(Parallel('jit', 1), 1)


@pytest.fixture
def with_two(executor, monkeypatch):
    objective = executor.jobs[0].config.objective
    with objective.unlocked():
        objective.kl = {'loss': 'kl', 'weight': 1.0, 'tau': 5e5}
    yield executor
    with objective.unlocked():
        del objective.kl


def test_what_a_step_learned_from_can_be_looked_at(executor):
    prepared = type(executor).prepared(executor, 1)
    batch = jax.device_get(prepared)
    assert batch['image'].shape[-3:] == (8, 8, 1) and np.isfinite(batch['image']).all()
    assert batch['image'].max() > 1


def test_pixels_come_first(executor):
    teachers = {'a': Output(BAD, {})}
    sentence = told(executor, {'cross_entropy': NAN}, image=BAD, teachers=teachers)
    assert 'step 5: its images have pixels that are not finite; the last good' in sentence


@pytest.mark.parametrize('said', [Output(BAD, {}), Output(GOOD, {'final': BAD})], ids=str)
def test_then_teachers_with_their_features(executor, said):
    teachers = {'good': Output(GOOD, {}), 'wild': said}
    sentence = told(executor, {'cross_entropy': NAN}, teachers=teachers)
    assert "teacher 'wild' says what is not finite" in sentence and 'leave that' in sentence


@pytest.mark.parametrize(
    ('losses', 'first'),
    [({'cross_entropy': 1.0, 'kl': NAN}, 0), ({'cross_entropy': 1.0, 'kl': float('inf')}, 4)],
)
def test_then_the_loss_that_is_not_while_others_are(with_two, losses, first):
    sentence = told(with_two, losses, first=first)
    assert "the first of its losses that is not finite is 'kl' (tau=500000)" in sentence
    assert 'change the fields of objective.kl, in a new --workdir' in sentence


def test_at_the_first_step_the_weights_were_finite(executor):
    assert "is 'cross_entropy' (" in told(executor, {'cross_entropy': NAN}, first=4)


def test_weights_of_losses_that_are_too_large(executor):
    assert 'lower their weights' in told(executor, {'cross_entropy': 1.0})


def test_otherwise_the_update_before(executor):
    sentence = told(executor, {'cross_entropy': NAN})
    assert 'the update before made weights that are not' in sentence
    assert f'lower optim.learning_rate (now {executor.jobs[0].learning_rate:g})' in sentence
