"""Trained models as teachers and as starting points, named by their workdir."""

from typing import Any, NamedTuple

import flax
import jax
import numpy as np

from kd_jax import checkpoint, models
from kd_jax.data import Splits
from kd_jax.errors import UserError
from kd_jax.step import Network
from kd_jax.workdir import RunDirectory


class Trained(NamedTuple):
    """A model that teaches or that another starts from; `variables` are None as long as it is still to be trained."""

    source: str  # for messages: a run's name or its workdir
    network: Network
    facts: dict[str, Any]  # of its data, as in config.json
    learning_rate: float
    variables: dict[str, Any] | None  # numpy arrays


def load(run: RunDirectory) -> Trained:
    """The model of a finished run with the weights that its result was measured with.

    Raises:
      UserError: if the run is unfinished, its files are damaged, or its model is not in the zoo.
    """
    if not run.finished():
        raise UserError(f'the run in {run.path} is unfinished (it has no result.json); run its study again to complete it')
    info = run.info()
    overrides = dict(info['config']['model'])
    facts = info['data']
    model = models.build(overrides.pop('name'), facts['num_classes'], **overrides)
    network = Network(model, tuple(facts['mean']), tuple(facts['std']))
    variables = checkpoint.load_variables(run.path, run.result()['checkpoint'])
    return Trained(str(run.path), network, facts, info['learning_rate'], variables)


def check_teacher(teacher: Trained, data: Splits) -> None:
    """Raises `UserError` unless the teacher has the classes and the image shape of the student's data.

    Another normalisation is no obstacle: each network normalises the same pixels with its own mean and std.
    """
    if teacher.facts['num_classes'] != data.num_classes:
        raise UserError(
            f"the teacher {teacher.source} has {teacher.facts['num_classes']} classes, the student's data ({data.name}) "
            f'{data.num_classes}; train a teacher on the same classes'
        )
    check_shape(teacher, data, 'teacher')


def check_shape(trained: Trained, data: Splits, role: str) -> None:
    """Raises `UserError` unless `trained` saw images of the data's shape."""
    here, there = tuple(data.train.image.shape[1:]), tuple(trained.facts['image_shape'])
    if here != there:
        raise UserError(
            f"the {role} {trained.source} was trained on images of shape {there}, the student's data ({data.name}) has {here}; "
            'use data of the same shape'
        )


def start_from(trained: Trained, fresh: dict[str, Any], warn) -> dict[str, Any]:
    """`fresh` variables with the values of `trained`; a head of another size keeps its fresh values, and `warn` says so.

    Raises:
      UserError: if the two models differ in anything but the head.
    """
    old = flax.traverse_util.flatten_dict(trained.variables, sep='/')
    new = flax.traverse_util.flatten_dict(fresh, sep='/')
    unlike = sorted(
        name for name in old.keys() | new.keys() if name not in old or name not in new or old[name].shape != new[name].shape
    )
    head = [name for name in unlike if name.split('/')[1] == 'head']
    if set(unlike) - set(head):
        rest = [name for name in unlike if name not in head]
        raise UserError(
            f'{trained.source} cannot initialise this model: {len(rest)} arrays differ in name or shape, the first is '
            f'{rest[0]}; take a run of the same model'
        )
    if head:
        warn(f'{trained.source} has another number of classes: the head ({", ".join(head)}) starts afresh')
    merged = {name: new[name] if name in unlike else np.asarray(old[name]) for name in new}
    return flax.traverse_util.unflatten_dict(merged, sep='/')


def param_count(variables: dict[str, Any]) -> int:
    """Number of parameters (running statistics do not count)."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(variables['params']))
