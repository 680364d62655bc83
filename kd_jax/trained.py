"""Trained models as teachers and as starting points, named by their workdir,
or read from PyTorch weights.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from kd_jax import checkpoint, config, models, own, pretrained
from kd_jax.data import DatasetInfo
from kd_jax.errors import UserError
from kd_jax.monitor import say
from kd_jax.networks import Network
from kd_jax.objectives import Loss
from kd_jax.workdir import RunDirectory

WEIGHTS = ('.pth', '.pt', '.bin', '.safetensors')  # files that `init` takes for PyTorch weights
# Overrides that add to a model what its weights need not have.
NEW = ('adapter', 'heads', 'average_heads')


class Trained(NamedTuple):
    """A model that teaches or that another starts from; `variables` are None as long
    as it is still to be trained.
    """

    source: str  # for messages: a run's name, its workdir, or a file
    network: Network  # in the precision it was trained in
    info: DatasetInfo  # of its data
    precision: str
    learning_rate: float | None  # None: unknown
    variables: dict[str, Any] | None  # numpy arrays
    # if the weights were just read from a file: what is needed to keep them
    imported: pretrained.Imported | None = None


def build_network(
    model: Mapping[str, Any],
    info: DatasetInfo,
    precision: str,
    *,
    fast: bool = True,
    resize: bool = False,
) -> Network:
    """The network of a run's `model` fields (`name` and overrides) for
    the data that `info` describes.

    precision: see `kd_jax.networks.PRECISIONS`; with `fast` in the forms that are fast on a CPU.
    With `resize` it takes images of any shape and sees them in the shape of its data.
    """
    overrides = dict(model)
    for field in pretrained.OWN:
        if field in overrides:
            raise UserError(
                f'model.{field} is {overrides[field]!r}; it is set by the program, take it out'
            )
    module = models.build(overrides.pop('name'), info.num_classes, **overrides)
    network = Network(
        module, tuple(info.mean), tuple(info.std), info.image_shape if resize else None
    )
    return network.computing(precision, fast)


def load(run: RunDirectory) -> Trained:
    """The model of a finished run with the weights that its result was measured with.

    Raises:
      UserError: if the run is unfinished, its files are damaged, or its model is not in the zoo.
    """
    if not run.finished():
        state = 'is unfinished (it has no result.json)' if run.path.exists() else 'does not exist'
        raise UserError(
            f'the run in {run.path} {state}; run its study again to complete it, '
            'if with --only then that run too'
        )
    recorded = run.info()
    info, fields = DatasetInfo.from_json(recorded['data']), config.upgraded(recorded['config'])
    channels = info.image_shape[-1]
    usable = len(info.mean) == len(info.std) == channels and all(0 < s < math.inf for s in info.std)
    if not usable or not all(map(math.isfinite, info.mean)):
        raise UserError(
            f'{run.path / "config.json"} has the mean {info.mean} and the std {info.std} for '
            f'{channels} channels; delete {run.path} and run its study again'
        )
    try:
        network = build_network(fields['model'], info, fields['precision'], resize=True)
    except UserError as error:
        if own.is_own(fields['model'].get('name')):
            raise UserError(f'{run.path}: {error}') from error
        raise UserError(
            f'{run.path / "config.json"} names no model of this version ({error}); delete '
            f'{run.path} and run its study again'
        ) from error
    variables = checkpoint.load_variables(run.path, run.result()['checkpoint'])
    _check_variables(run, network, variables, info)
    return Trained(
        str(run.path), network, info, fields['precision'], recorded.get('learning_rate'), variables
    )


def _check_variables(
    run: RunDirectory, network: Network, variables: Mapping[str, Any], info: DatasetInfo
) -> None:
    """Raises `UserError` unless the variables are those of the model that the run records."""
    plain = network.model.clone(fast=False)  # traced in half the time
    image = jax.ShapeDtypeStruct((1, *info.image_shape), jnp.float32)
    try:
        wanted = jax.eval_shape(partial(plain.init, train=False), jax.random.key(0), image)
    except UserError as error:
        raise UserError(
            f'{run.path / "config.json"} has a model that cannot see its images ({error}); delete '
            f'{run.path} and run its study again'
        ) from error
    here, there = (
        {path: np.shape(x) for path, x in flax.traverse_util.flatten_dict(dict(tree)).items()}
        for tree in (wanted, variables)
    )
    if here != there:
        path = min(set(here.items()) ^ set(there.items()))[0]
        raise UserError(
            f'the checkpoint of {run.path} is not that of the model in its config.json, '
            f'{type(plain).__name__} with {info.num_classes} classes (they differ in '
            f'{"/".join(path)}); delete {run.path} and run its study again'
        )


def load_weights(path: epath.Path, model: Mapping[str, Any], info: DatasetInfo) -> Trained:
    """PyTorch weights to start a run's `model` from; what they need not have (adapters,
    auxiliary heads) is left out.
    """
    imported = pretrained.load(path, {key: value for key, value in model.items() if key not in NEW})
    usual = pretrained.input_of(imported.model['name'])
    side, mean, std = (
        ((usual['size'],) * 2, usual['mean'], usual['std'])
        if usual and len(usual['mean']) == imported.channels
        else (info.image_shape[:2], info.mean, info.std)
    )
    info_there = DatasetInfo('', imported.num_classes, (), (*side, imported.channels), mean, std)
    network = build_network(imported.model, info_there, 'float32')
    return Trained(str(path), network, info_there, 'float32', None, imported.variables)


def sees(
    name: str, run: Mapping[str, Any], start: Trained | None, data: DatasetInfo
) -> DatasetInfo:
    """`data` as the network of a run sees them: images of the size and normalisation of what it
    starts from, unless the run has a size, or the data a mean and std, of their own.
    """
    (height, width, channels), mean, std = data.image_shape, data.mean, data.std
    if start is not None and len(start.info.mean) >= channels:
        height, width, channels = start.info.image_shape
        mean = tuple(run['data']['mean']) or start.info.mean
        std = tuple(run['data']['std']) or start.info.std
    if len(mean) == 1:  # grey images, as the channels that the weights see
        mean, std = tuple(mean) * channels, tuple(std) * channels
    if run['size']:
        height = width = run['size']
    found = dataclasses.replace(data, image_shape=(height, width, channels), mean=mean, std=std)
    if start is not None and (found.image_shape, mean) != (data.image_shape, data.mean):
        rounded = tuple(round(m, 4) for m in mean)
        say(
            f'{name} sees images of {height} x {width} pixels with the mean {rounded}, as '
            f'{start.source} does'
        )
    return found


def check_teacher(
    teacher: Trained, info: DatasetInfo, losses: Iterable[tuple[str, Loss]] | None = None
) -> None:
    """Raises `UserError` unless the teacher can see the images of the student's data, and has its
    classes where its logits are needed.

    Another normalisation or image size is no obstacle: each network resizes and normalises the same
    pixels for itself, and a grey image becomes one of three equal channels.

    losses: labels and terms that learn from it; None: what they are is not known.
    """
    if not teacher.info.same_classes(info):
        why = _other_classes(teacher, info)
        if losses is None:
            raise UserError(f'{why}; train a teacher on the same classes')
        terms = [(label, loss) for label, loss in losses if loss.needs_teacher]
        reading = [label for label, loss in terms if loss.reads_logits()]
        if reading:
            rest = ', '.join(label for label, loss in terms if not loss.reads_logits())
            but = f' and {rest} does not' if rest else ''
            raise UserError(
                f'{why}; train a teacher on the same classes, or take terms on features alone, '
                "such as at, sp or rkd with only_where='always': of the objective, "
                f'{", ".join(reading)} learns from logits{but}'
            )
    here, there = info.image_shape[-1], teacher.info.image_shape[-1]
    if here != there and here != 1:
        raise UserError(
            f'the teacher {teacher.source} sees images of {there} channel(s), '
            f"the student's data ({info.name}) has {here}; use data of the same kind"
        )


def _other_classes(teacher: Trained, info: DatasetInfo) -> str:
    """How the classes of a teacher differ from those of the student's data."""
    there, here = teacher.info, f"the student's data ({info.name})"
    if there.num_classes != info.num_classes:
        return (
            f'the teacher {teacher.source} has {there.num_classes} classes, {here} '
            f'{info.num_classes}'
        )
    pairs = zip(there.class_names, info.class_names, strict=True)
    number, (one, other) = next((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1])
    return f'class {number} of the teacher {teacher.source} is {one!r}, that of {here} is {other!r}'


def check_start(trained: Trained, fresh: Any) -> tuple[list[str], list[str]]:
    """(arrays of `fresh` variables, or shapes, that start afresh; arrays of
    `trained` that are left out).

    That may be a head of another size, auxiliary heads, and adapters.

    Raises:
      UserError: if the two models differ in anything else.
    """
    there = trained.variables
    if there is None:
        pixels = jnp.zeros((1, *trained.info.image_shape))
        there = jax.eval_shape(
            lambda: trained.network.model.init(jax.random.key(0), pixels, train=False)
        )
    old, new = (flax.traverse_util.flatten_dict(tree, sep='/') for tree in (there, fresh))
    unlike = {name for name in old.keys() & new.keys() if old[name].shape != new[name].shape} | (
        old.keys() ^ new.keys()
    )
    replaceable = re.compile(r'\w+/(head\w*|\w+_adapter)/')
    rest = sorted(name for name in unlike if not replaceable.match(name))
    if rest:
        name = rest[0]

        def show(tree: Mapping[str, Any]) -> str:
            return str(tuple(tree[name].shape)) if name in tree else 'nothing'

        raise UserError(
            f'{trained.source} cannot initialise this model: {len(rest)} arrays differ '
            f'in name or shape, the first is {name} ({show(old)} there, {show(new)} '
            'here); take a run of the same model'
        )
    return sorted(unlike & new.keys()), sorted(unlike - new.keys())


def start_from(
    trained: Trained, fresh: dict[str, Any], warn: Callable[[str], None]
) -> dict[str, Any]:
    """`fresh` variables with the values of `trained`; `warn` says which heads and
    adapters keep their fresh values.

    Raises:
      UserError: if the two models differ in anything but heads and adapters.
    """
    afresh, dropped = check_start(trained, fresh)
    if 'params/head/kernel' in afresh:
        count = trained.info.num_classes
        warn(f'{trained.source} has another number of classes ({count}): the head starts afresh')
    for words, names in (('start afresh', afresh), ('are left out', dropped)):
        modules = sorted({name.split('/')[1] for name in names} - {'head'})
        if modules:
            warn(f'not shared with {trained.source}, these {words}: {", ".join(modules)}')
    old, new = (
        flax.traverse_util.flatten_dict(tree, sep='/') for tree in (trained.variables, fresh)
    )
    merged = {name: new[name] if name in afresh else np.asarray(old[name]) for name in new}
    return flax.traverse_util.unflatten_dict(merged, sep='/')
