"""Imported weights as a finished run, which can teach like any other."""

import math
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp

from kd_jax import models, parallel
from kd_jax.checkpoint import Checkpoints
from kd_jax.errors import UserError
from kd_jax.models.common import param_count
from kd_jax.pretrained.matching import MOST
from kd_jax.workdir import RunDirectory, differences, to_json


class Imported(NamedTuple):
    """Weights of a file as those of a model of the zoo."""

    model: dict[str, Any]  # {'name', and overrides}
    num_classes: int
    channels: int  # of its images
    variables: dict[str, Any]  # {'params', 'batch_stats'}: numpy, float32
    checksum: str  # SHA-256 of the file
    path: str


def make_run(
    directory: RunDirectory,
    name: str,
    imported: Imported,
    *,
    image_shape: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str] | None = None,
    data_name: str = 'imported',
    measured: Mapping[str, Any] | None = None,
) -> bool:
    """Writes the weights as the finished run `name` with seed 0; False if they are there already.

    image_shape: (height, width, channels) of the images that it will see. mean, std: a number for
    each channel, for images in 0..1. measured: what the caller has measured, by the names of
    result.json; everything else is unknown, None.

    Raises:
      UserError: if what is given does not fit to the weights, or the directory holds anything
        else, which is left as it is.
    """
    _check_data(imported, image_shape, mean, std, class_names)
    data = {
        'name': data_name,
        'num_classes': imported.num_classes,
        'class_names': class_names or [str(k) for k in range(imported.num_classes)],
        'image_shape': image_shape,
        'mean': mean,
        'std': std,
        'count': dict.fromkeys(('train', 'labelled', 'val', 'test')),
    }
    config = {'model': imported.model, 'torch': imported.path, 'sha256': imported.checksum}
    info = to_json({'run': name, 'seed': 0, 'learning_rate': None, 'data': data, 'config': config})
    if _already_there(directory, info) and directory.finished():
        return False
    # Of several processes one writes the files, and all save the checkpoint.
    parallel.barrier(f'{name} looked up')
    if parallel.is_main():
        directory.start(info)
        # What an interrupted import of the same weights left.
        shutil.rmtree(directory.checkpoints, ignore_errors=True)
    parallel.barrier(f'{name} directory')
    variables = dict(imported.variables)
    params = variables.pop('params')
    with Checkpoints(directory.checkpoints) as checkpoints:
        checkpoints.save(
            0, {'params': {'student': params}, 'model_state': {'student': variables}}, {}
        )
    if parallel.is_main():
        directory.finish(_result(name, imported, measured or {}))
    parallel.barrier(f'{name} imported')
    return True


def _result(name: str, imported: Imported, measured: Mapping[str, Any]) -> dict[str, Any]:
    """What result.json says of the run."""
    unmeasured = dict.fromkeys(
        (
            'flops',
            'latency_ms',
            'images_per_second',
            'data_wait',
            'seconds',
            'teacher',
            'val',
            'test',
        )
    )
    result = {
        'run': name,
        'seed': 0,
        'model': imported.model['name'],
        'params': param_count(imported.variables),
        'steps': 0,
        'checkpoint': 0,
        'imported': {'path': imported.path, 'sha256': imported.checksum},
    }
    return to_json(result | unmeasured | dict(measured))


def _check_data(
    imported: Imported,
    image_shape: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str] | None,
) -> None:
    """Raises `UserError` unless the model of the weights can see such
    images and has so many classes.
    """
    if class_names is not None and len(class_names) != imported.num_classes:
        raise UserError(
            f'{len(class_names)} class names for {imported.num_classes} classes; '
            f'name each class of {imported.path}'
        )
    channels = image_shape[-1]
    for word, values in (('mean', mean), ('std', std)):
        if len(values) != channels:
            raise UserError(
                f'{word} {tuple(values)} does not fit to images of {channels} '
                'channels; give one number a channel'
            )
        if not all(math.isfinite(v) for v in values):
            raise UserError(f'{word} is {tuple(values)}; it must be finite in every channel')
    if min(std) <= 0:
        raise UserError(
            f'std {tuple(std)} is not possible; it must be greater than 0 in every channel'
        )
    overrides = dict(imported.model)
    model = models.build(overrides.pop('name'), imported.num_classes, **overrides)
    shapes = jax.eval_shape(
        partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, *image_shape))
    )
    here, there = (
        {path: tuple(x.shape) for path, x in flax.traverse_util.flatten_dict(dict(tree)).items()}
        for tree in (shapes, imported.variables)
    )
    if here != there:
        raise UserError(
            f'the weights of {imported.path} do not take images of shape '
            f'{tuple(image_shape)}; give their own shape'
        )


def _already_there(directory: RunDirectory, info: Mapping[str, Any]) -> bool:
    """Whether the directory holds these weights; `UserError` if it holds something else."""
    if not (directory.path / 'config.json').exists():
        if directory.path.is_dir() and any(directory.path.iterdir()):
            raise UserError(
                f'{directory.path} is not empty and holds no run; choose another --workdir'
            )
        return False
    there = directory.info()
    wanted = {key: info[key] for key in ('run', 'data')} | {
        'config': info['config'] | {'torch': None}
    }
    other = {key: there.get(key) for key in ('run', 'data')} | {
        'config': there.get('config', {}) | {'torch': None}
    }
    if fields := differences(wanted, other):
        raise UserError(
            f'{directory.path} holds another run or other weights ({"; ".join(fields[:MOST])}); '
            'choose another --workdir or --name, or delete that directory'
        )
    return True
