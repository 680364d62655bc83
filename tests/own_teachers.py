"""Steps of runs whose teachers are their own average, their snapshot or a second student."""

import jax
from helpers import random_splits
from steps import MODES, run_of, start
from steps import train as train_steps

from configs import common
from kd_jax.initialization import initial_state
from kd_jax.teacher_outputs import PEER

VIEWS = {'crop': 1, 'flip': True}


EPOCH = 60 / 16  # steps


def alone(
    kind, mode='jit on 1', *, steps, snapshot_steps=2, objective=None, model='cnn', **changes
):
    """(executor, its last state, the metrics of each step) of a run without other teachers."""
    changes = {
        'teachers': (kind,),
        'snapshot_epochs': snapshot_steps / EPOCH,
        'optim.weight_decay': 0.0,
        **changes,
    }
    objective = objective or common.distillation(0.5, 2.0)
    executor, _ = start(
        run_of(changes, objective, VIEWS, model), random_splits(), *MODES[mode], steps=1
    )
    history = train_steps(executor, (1,) * steps)
    return executor, jax.device_get(executor.states()[0]), history and history[0]


def peers(exchanged=False, equal=False):
    """An executor of two students, and its first state with the two exchanged or equal."""
    executor, (job,) = start(
        run_of({'teachers': (PEER,)}, common.distillation(0.5, 2.0), VIEWS),
        random_splits(),
        steps=1,
    )
    state = initial_state(job)
    params = dict(state.params)
    if exchanged:
        params |= {'student': params['peer'], 'peer': params['student']}
    if equal:
        params['peer'] = params['student']
    executor.load([job], [state.replace(params=params)])
    return executor
