"""Teachers that a run makes for itself: the average of its weights, snapshots of its past, a second
student.
"""

import jax
import numpy as np
import pytest
from helpers import FASTEST_COMPILE, quickly
from own_teachers import alone, peers
from steps import largest_difference
from steps import train as train_steps

from kd_jax.initialization import initial_state
from kd_jax.teacher_outputs import EMA, PEER, SELF_TEACHERS, SNAPSHOT, outside


def states_at(executor, steps):
    """The states of an executor's job after so many steps each."""
    executor.load(executor.jobs, [initial_state(job) for job in executor.jobs])
    states, at = [], 0
    for step in steps:
        train_steps(executor, (1,) * (step - at), begin=at)
        at = step
        states.append(jax.device_get(executor.states()[0]))
    return states


def test_the_snapshot_is_what_the_student_was_and_teaches_from_then_on():
    executor, _, history = alone(SNAPSHOT, snapshot_steps=3, steps=6)
    first = initial_state(executor.jobs[0])
    second, third, fifth, sixth = states_at(executor, (2, 3, 5, 6))
    assert largest_difference(second.snapshot['params'], first.params['student']) == 0
    assert largest_difference(third.snapshot['params'], third.params['student']) == 0
    assert largest_difference(fifth.snapshot['params'], third.params['student']) == 0
    assert largest_difference(sixth.snapshot['params'], sixth.params['student']) == 0
    assert largest_difference(third.params, first.params) > 1e-3
    # At step 3 the student is its own snapshot, in the steps before there is none: the
    # divergence is 0, then it is not.
    assert [kl > 1e-6 for kl in history['kl']] == [False, False, False, False, True, True]


def test_the_average_teaches_what_it_predicts():
    """At the first step it is the student; then the divergence is
    that from the average, by hand.
    """
    changes = {'optim.ema_decay': 0.99, 'optim.learning_rate': 1.0}
    executor, _, history = alone(EMA, steps=5, **changes)
    assert history['kl'][0] == pytest.approx(0, abs=1e-6) and history['kl'][3] > 1e-4
    (state,) = states_at(executor, (4,))
    network, batch = executor.run.step.students['student'], executor._order.at(4)
    images = executor.run.dataset.train.image[batch['index']]
    augment = quickly(executor.run.step.views.augment, FASTEST_COMPILE)
    image = augment(jax.random.key(0), images, batch['index'], batch['view'])
    predict = quickly(network.predict, FASTEST_COMPILE)
    student, teacher = (
        np.float64(predict({'params': params}, image).logits)
        for params in (state.params['student'], state.ema['params'])
    )
    p, q = (np.exp(z / 2) / np.exp(z / 2).sum(1, keepdims=True) for z in (teacher, student))
    # The divergence is a sum of differences of logarithms near log 1/3;
    # float32 rounds each of the two.
    rounding = 4 * 2 * np.finfo(np.float32).eps * np.abs(np.log(q)).max()
    assert rounding < 2e-3 * history['kl'][4]
    assert history['kl'][4] == pytest.approx(4 * (p * np.log(p / q)).sum(1).mean(), abs=rounding)


def test_equal_peers_stay_equal_and_have_nothing_to_tell_each_other():
    executor = peers(equal=True)
    (history,) = train_steps(executor, (1,) * 4)
    params = executor.states()[0].params
    assert largest_difference(params['student'], params['peer']) <= 1e-7
    assert max(history['kl']) <= 1e-6
    assert history['loss'][2] == pytest.approx(history['peer_loss'][2], rel=1e-6)


def test_self_teachers_are_not_looked_for_elsewhere():
    assert set(SELF_TEACHERS) == {EMA, SNAPSHOT, PEER}
    assert outside(('a', *SELF_TEACHERS, 'self/seed0')) == ('a', 'self/seed0')
