"""Studies of seconds, in this process."""

import flax

from configs import common
from kd_jax import study
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
