"""Trained models as teachers and as starting points, named by their workdir, or read from PyTorch weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import checkpoint, models, pretrained
from kd_jax.data import Splits
from kd_jax.errors import UserError
from kd_jax.models.common import param_count as param_count  # also called teachers.param_count
from kd_jax.networks import Network
from kd_jax.workdir import RunDirectory

WEIGHTS = ('.pth', '.pt', '.bin', '.safetensors')  # files that `init` takes for PyTorch weights
NEW = ('adapter', 'heads', 'average_heads')  # overrides that add to a model what its weights need not have


class Trained(NamedTuple):
    """A model that teaches or that another starts from; `variables` are None as long as it is still to be trained."""

    source: str  # for messages: a run's name, its workdir, or a file
    network: Network
    facts: dict[str, Any]  # of its data, as in config.json
    learning_rate: float | None  # None: unknown
    variables: dict[str, Any] | None  # numpy arrays
    imported: pretrained.Imported | None = None  # if the weights were just read from a file: what is needed to keep them


def build_network(model: Mapping[str, Any], facts: Mapping[str, Any], *, resize: bool = False) -> Network:
    """The network of a run's `model` fields (`name` and overrides) for data of these `facts`.

    With `resize` it takes images of any shape and sees them in the shape that the facts name.
    """
    overrides = dict(model)
    built = models.build(overrides.pop('name'), facts['num_classes'], **overrides)
    shape = tuple(facts['image_shape']) if resize else None
    return Network(built, tuple(facts['mean']), tuple(facts['std']), shape)


def load(run: RunDirectory) -> Trained:
    """The model of a finished run with the weights that its result was measured with.

    Raises:
      UserError: if the run is unfinished, its files are damaged, or its model is not in the zoo.
    """
    if not run.finished():
        state = 'is unfinished (it has no result.json)' if run.path.exists() else 'does not exist'
        raise UserError(f'the run in {run.path} {state}; run its study again to complete it, if with --only then that run too')
    info = run.info()
    network = build_network(info['config']['model'], info['data'], resize=True)
    variables = checkpoint.load_variables(run.path, run.result()['checkpoint'])
    return Trained(str(run.path), network, info['data'], info['learning_rate'], variables)


def load_weights(path: Path, model: Mapping[str, Any], mean: tuple[float, ...], std: tuple[float, ...]) -> Trained:
    """PyTorch weights to start a run's `model` from; what they need not have (adapters, auxiliary heads) is left out."""
    imported = pretrained.load(path, {key: value for key, value in model.items() if key not in NEW})
    facts = {'num_classes': imported.num_classes, 'image_shape': (32, 32, 3), 'mean': mean, 'std': std}
    return Trained(str(path), build_network(imported.model, facts), facts, None, imported.variables)


def check_teacher(teacher: Trained, data: Splits) -> None:
    """Raises `UserError` unless the teacher has the classes of the student's data and can see its images.

    Another normalisation or image size is no obstacle: each network resizes and normalises the same pixels for itself,
    and a grey image becomes one of three equal channels.
    """
    if teacher.facts['num_classes'] != data.num_classes:
        raise UserError(
            f"the teacher {teacher.source} has {teacher.facts['num_classes']} classes, the student's data ({data.name}) "
            f'{data.num_classes}; train a teacher on the same classes'
        )
    here, there = data.train.image.shape[-1], teacher.facts['image_shape'][-1]
    if here != there and here != 1:
        raise UserError(
            f"the teacher {teacher.source} sees images of {there} channel(s), the student's data ({data.name}) has {here}; "
            'use data of the same kind'
        )


def check_start(trained: Trained, fresh: Any) -> tuple[list[str], list[str]]:
    """(arrays of `fresh` variables, or shapes, that start afresh; arrays of `trained` that are left out).

    That may be a head of another size, auxiliary heads, and adapters.

    Raises:
      UserError: if the two models differ in anything else.
    """
    there = trained.variables
    if there is None:
        pixels = jnp.zeros((1, *trained.facts['image_shape']))
        there = jax.eval_shape(lambda: trained.network.model.init(jax.random.key(0), pixels, train=False))
    old, new = (flax.traverse_util.flatten_dict(tree, sep='/') for tree in (there, fresh))
    unlike = {name for name in old.keys() & new.keys() if old[name].shape != new[name].shape} | (old.keys() ^ new.keys())
    own = re.compile(r'\w+/(head\w*|\w+_adapter)/')
    rest = sorted(name for name in unlike if not own.match(name))
    if rest:
        name = rest[0]
        show = lambda tree: str(tuple(tree[name].shape)) if name in tree else 'nothing'  # noqa: E731
        raise UserError(
            f'{trained.source} cannot initialise this model: {len(rest)} arrays differ in name or shape, the first is '
            f'{name} ({show(old)} there, {show(new)} here); take a run of the same model'
        )
    return sorted(unlike & new.keys()), sorted(unlike - new.keys())


def start_from(trained: Trained, fresh: dict[str, Any], warn) -> dict[str, Any]:
    """`fresh` variables with the values of `trained`; `warn` says which heads and adapters keep their fresh values.

    Raises:
      UserError: if the two models differ in anything but heads and adapters.
    """
    afresh, dropped = check_start(trained, fresh)
    if 'params/head/kernel' in afresh:
        count = trained.facts['num_classes']
        warn(f'{trained.source} has another number of classes ({count}): the head starts afresh')
    for words, names in (('start afresh', afresh), ('are left out', dropped)):
        modules = sorted({name.split('/')[1] for name in names} - {'head'})
        if modules:
            warn(f'not shared with {trained.source}, these {words}: {", ".join(modules)}')
    old, new = (flax.traverse_util.flatten_dict(tree, sep='/') for tree in (trained.variables, fresh))
    merged = {name: new[name] if name in afresh else np.asarray(old[name]) for name in new}
    return flax.traverse_util.unflatten_dict(merged, sep='/')
