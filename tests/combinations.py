"""What a step can do, and a check that some of it, together, is the same on one device and on four,
under jit and pmap, and resumed.
"""

import itertools

import jax
import numpy as np
import pytest
from helpers import random_splits
from steps import MODES, largest_difference, run_of, start, teachers_of, train

from kd_jax import config, evaluation, jobs
from kd_jax.checkpoint import Checkpoints
from kd_jax.initialization import initial_state

# What each does to a run that learns from the teacher 'a': (changes of the run, of the
# augmentation, teachers added).
FEATURES = {
    'sweep': ({'sweep': 'objective.kl.tau=1,4'}, {}, ()),
    'several teachers': ({}, {}, ('b',)),
    'own past and average': (
        {'optim.ema_decay': 0.9, 'snapshot_epochs': 0.25},
        {},
        ('self:ema', 'self:snapshot'),
    ),
    'peer': ({}, {}, ('self:peer',)),
    'stored targets': ({'soft_targets': 'exact'}, {}, ()),
    'mixup': ({}, {'mixup': 1.0, 'cutmix': 1.0}, ()),
    'accumulation': ({'optim.accumulate': 2}, {}, ()),
    'average of weights': ({'optim.ema_decay': 0.9}, {}, ()),
    'freezing': ({'optim.freeze': ('stage1',)}, {}, ()),
}
REFUSED = {
    ('own past and average', 'peer'): 'self:peer does not go with the others',
    ('stored targets', 'mixup'): 'every image is mixed with another one every time',
}
PAIRS = list(itertools.combinations(FEATURES, 2))


def all_but(*without):
    return tuple(name for name in FEATURES if name not in without)


# Everything at once, but for one of each pair that is refused; a sweep is another executor.
TOGETHER = [
    all_but('peer', 'mixup'),
    all_but('sweep', 'own past and average', 'stored targets', 'accumulation'),
]
# What is left, in the tier science.
REST = [
    all_but('sweep', 'peer', 'stored targets'),
    all_but('sweep', 'own past and average', 'mixup'),
    all_but('own past and average', 'stored targets'),
    all_but('sweep', 'own past and average', 'stored targets'),
]


def configured(names):
    changes, augment, teachers = {'model.dropout': 0.1}, {'crop': 1}, ['a']
    for name in names:
        more, views, added = FEATURES[name]
        changes, augment, teachers = changes | more, augment | views, teachers + list(added)
    weights = tuple(float(k) for k in range(1, len(teachers) + 1))
    objective = config.distillation(0.7, 4.0)
    objective.dist = config.term('dist', weight=0.1)  # which looks across the batch
    changes |= {'teachers': tuple(teachers), 'teacher_weights': weights}
    return run_of(changes, objective, augment, 'tiny')


def saved_and_restored(state, directory):
    """As another process would find it."""
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, state, {})
    with Checkpoints(directory) as checkpoints:
        return checkpoints.restore_latest(jax.tree.map(np.zeros_like, state), pytest.fail)[0]


def in_steps(states, learning_rate=0.05):
    """States in which the sums of gradients are what they move the parameters by."""
    return [
        state.replace(opt_state=jax.tree.map(lambda x: learning_rate * x, state.opt_state))
        for state in states
    ]


def check(names, directory):
    """Two updates and a ragged evaluation: 1e-5 between the devices, but for the losses of the
    second update; after one of them, saved and
    restored, the second is the same bit for bit; teachers keep every bit; and a member of a sweep
    is what it would be alone.
    """
    run, dataset, states, histories = configured(names), random_splits(unlabelled=20), {}, {}
    evaluated, teachers = {}, teachers_of(run, dataset.info)
    for mode, how in MODES.items():
        executor, todo = start(run, dataset, *how, steps=1, workdir=directory)
        histories[mode] = train(executor, (1, 1))
        states[mode] = jax.device_get(executor.states())
        evaluated[mode] = [evaluation.finish(sums) for sums in executor.evaluate('val')]
        if 'stored targets' not in names:
            for name, teacher in teachers.items():
                left = jax.device_get(executor._teachers.variables[name])
                assert largest_difference(left, teacher.variables) == 0
        if mode == 'jit on 1':
            executor.load(todo, [initial_state(job) for job in todo])
            train(executor, (1,))
            kept = jax.device_get(executor.states())
            executor.load(
                todo,
                [saved_and_restored(state, directory / str(k)) for k, state in enumerate(kept)],
            )
            again = train(executor, (1,), begin=1)
            assert largest_difference(jax.device_get(executor.states()), states[mode]) == 0
            assert (
                largest_difference(
                    again, [{name: x[1:] for name, x in of.items()} for of in histories[mode]]
                )
                == 0
            )
    one = states['jit on 1']
    assert len(one) == (2 if 'sweep' in names else 1)
    first = [initial_state(job).params for job in todo]
    assert largest_difference([state.params for state in one], first) > 1e-4
    assert all(int(state.step) == 2 for state in one)
    assert all(of['count'] == 22 and 0 <= of['teacher']['agreement'] <= 1 for of in evaluated[mode])
    for mode in ('jit on 4', 'pmap on 4'):
        assert largest_difference(evaluated['jit on 1'], evaluated[mode]) <= 1e-5, mode
        assert largest_difference(*map(in_steps, (one, states[mode]))) <= 1e-5, mode
        # the second losses follow from states that may differ by as much, and dist divides by the
        # spread of logits that are nearly equal
        for step, most in ((0, 1e-5), (1, 1e-4)):
            some = [
                [{name: x[step] for name, x in of.items()} for of in histories[key]]
                for key in ('jit on 1', mode)
            ]
            assert largest_difference(*some) <= most, (mode, step)
    if 'sweep' in names:
        member = jobs.members_of('own', run)[todo[-1].name]
        executor, _ = start(member, dataset, steps=1, workdir=directory / 'member')
        (alone,) = train(executor, (1, 1))
        assert largest_difference(executor.states()[0].params, one[-1].params) <= 1e-5
        assert largest_difference(alone, histories['jit on 1'][-1]) <= 1e-5
