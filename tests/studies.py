"""Studies of seconds, in this process."""

import flax

from configs import common
from kd_jax import search, study
from kd_jax.checkpoint import load_variables
from kd_jax.workdir import RunDirectory

# With larger steps training would amplify rounding until nothing could be compared.
SMALL_STEPS = {
    'teachers': ('teacher',),
    'epochs': 2.0,
    'select': 'last',
    'optim.name': 'sgd',
    'optim.learning_rate': 0.01,
}


def config_of(data, **runs):
    """A study of quick runs on `data`; `runs`: name -> (objective or None, changes)."""
    config = common.study()
    config.data.source, config.data.path = 'npz', str(data)
    config.tensorboard = False
    config.parallel = 'jit'
    for name, (objective, changes) in runs.items():
        run = common.run(config, 'cnn', objective)
        run.model.width = 0.25
        run.batch_size, run.epochs = 20, 8.0
        run.optim.name, run.optim.learning_rate = 'adam', 0.01
        run.update_from_flattened_dict(changes)
        config.runs[name] = run
    return config.lock()


def train(config, workdir, only=(), should_stop=lambda: False):
    results = study.Study(config, workdir, only).run(should_stop)
    return {(r['run'], r['seed']): r for r in results}


def final_params(workdir, run, seed=0):
    directory = workdir / run / f'seed{seed}'
    return flax.traverse_util.flatten_dict(
        load_variables(directory, RunDirectory(directory).result()['checkpoint']), sep='/'
    )


SPACE = 'objective.kl.tau=1..16 log; optim.learning_rate=0.001..0.05 log'


def search_study(data, **changes):
    """A teacher and the student that a search varies, two seeds of three epochs."""
    changes = {
        'teachers': ('teacher',),
        'epochs': 3.0,
        'eval_every': 1.0,
        'seeds': (0, 1),
    } | changes
    return config_of(
        data, teacher=(None, {'epochs': 3.0}), student=(common.distillation(), changes)
    )


def search_of(data, workdir, space=SPACE, together=4, changes=None, **options):
    """A search over `space` for that student."""
    return search.Search(
        search_study(data, **(changes or {})),
        workdir,
        'student',
        space,
        together=together,
        **options,
    )


FIFTY_STEPS = SMALL_STEPS | {'epochs': 5.0, 'eval_every': 2.5}


def sweep_study(data, text, changes=None, terms=None, **fields):
    """A teacher and the sweep `text` of a student. changes: of its fields; terms: further ones
    of its objective; fields: of the study.
    """
    config = config_of(
        data,
        teacher=(None, {'epochs': 3.0}),
        student=(common.distillation(), FIFTY_STEPS | {'sweep': text} | (changes or {})),
    )
    with config.unlocked():
        config.augment.crop, config.augment.flip = 1, True
        config.update_from_flattened_dict(fields)
        for name, own in (terms or {}).items():
            config.runs.student.objective[name] = common.term(name, **own)
    return config


def student_study(data, teachers=('teacher',), **runs):
    """Students that differ in `runs`: name -> changes; two epochs
    with crop 1 and flip, 18 views.
    """
    taught = {
        name: (common.distillation(), SMALL_STEPS | {'teachers': teachers} | changes)
        for name, changes in runs.items()
    }
    config = config_of(data, **{name: (None, {}) for name in teachers}, **taught)
    with config.unlocked():
        config.augment.crop, config.augment.flip = 1, True
    return config
