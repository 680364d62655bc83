"""Teachers of a study that are no runs, `config.teachers.<name>`: PyTorch weights, `{'torch': file,
'model': name, ...}`, and what the user brings, `{'function': 'mine:teacher', ...}`.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from etils import epath

from kd_jax import config, evaluation, fields, own, parallel, pretrained, trained
from kd_jax.checkpoint import checksum as weights_checksum
from kd_jax.data import Dataset, DatasetInfo
from kd_jax.display import tracker
from kd_jax.errors import UserError
from kd_jax.monitor import say, warn
from kd_jax.workdir import RunDirectory

# In which an imported teacher is measured; it teaches in that of the student's run.
PRECISION = 'float32'


def check(name: str, given: Mapping[str, Any], runs: Iterable[str]) -> dict[str, Any]:
    """All fields of an imported teacher, `model` as a mapping of its name and overrides.

    Raises:
      UserError: for a field that is unknown or missing, a value out of range, or the name of a run.
    """
    if name in runs:
        raise UserError(
            f'{name!r} is both an imported teacher and a run; give one of them another name'
        )
    if not hasattr(given, 'keys'):
        raise UserError(
            f"teachers.{name} is {given!r}; write {{'torch': 'resnet50.pth', 'model': 'resnet50'}}"
        )
    model: Any = given.get('model') or ''
    model_name = model.get('name', '') if hasattr(model, 'keys') else model
    spec = fields.check(config.Imported, {**given, 'model': model_name}, f'teachers.{name}')
    if spec['function']:
        if spec['torch'] or spec['model']:
            raise UserError(
                f'teachers.{name} has a function and torch or model; it is the one or the other'
            )
        own.trust([spec['function']])
        return spec
    for field in ('torch', 'model'):
        if not spec[field]:
            raise UserError(
                f"teachers.{name}.{field} is missing; write {{'torch': "
                "'resnet50.pth', 'model': 'resnet50'}"
            )
    return spec | {'model': {'name': model} if isinstance(model, str) else dict(model)}


def load(
    name: str, spec: Mapping[str, Any], directory: RunDirectory, data: DatasetInfo
) -> trained.Trained:
    """The imported teacher: read from its directory if an earlier call left it
    there, otherwise from the file.

    Raises:
      UserError: for a file that is not the weights of the model, other weights than those in the
        directory, or an input that must be named.
    """
    if spec['function']:
        return _load_own(name, spec, data)
    path = epath.Path(spec['torch']).expanduser()
    if directory.finished() and not path.exists():  # the weights are in the directory
        return trained.load(directory)
    weights = pretrained.load(path, spec['model'], warn)
    if directory.finished():
        directory.check_same(
            {**directory.info()['config'], 'model': weights.model, 'sha256': weights.checksum}
        )
        return trained.load(directory)
    sees = _input(f'teachers.{name}', spec, weights.channels, data)
    count = weights.num_classes  # such as ImageNet's 1000, of which the weights say no names
    names = tuple(data.class_names) if count == data.num_classes else tuple(map(str, range(count)))
    info = DatasetInfo(data.name, count, names, *sees)
    network = trained.build_network(weights.model, info, PRECISION, resize=True)
    return trained.Trained(
        spec['torch'], network, info, PRECISION, None, weights.variables, weights
    )


def _load_own(name: str, spec: Mapping[str, Any], data: DatasetInfo) -> trained.Trained:
    """A function, or a module and its variables, that the user brings."""
    found, field = own.load(spec['function'], 'teacher'), f'teachers.{name}'
    height, width, channels = data.image_shape
    shape = (spec['size'] or height, spec['size'] or width, len(spec['mean']) or channels)
    model: dict[str, Any] = {'name': spec['function']}
    if isinstance(found, tuple):
        if len(found) != 2:
            raise UserError(
                f'{field}.function is a tuple of {len(found)}; give (module, variables)'
            )
        variables = jax.device_get(dict(found[1]))
        if not spec['mean'] or not spec['std']:
            raise UserError(
                f'{field}.mean and .std are missing: give those with which its images were '
                'normalised, for images in 0..1; (0.,) and (1.,) if they were not'
            )
        mean, std = spec['mean'], spec['std']
    else:
        variables, model['function'] = {'params': {}}, True
        mean = spec['mean'] or (0.0,) * shape[-1]
        std = spec['std'] or (1 / 255,) * shape[-1]
    for key, values in (('mean', mean), ('std', std)):
        if len(values) != shape[-1]:
            raise UserError(
                f'{field}.{key} has {len(values)} numbers for images of {shape[-1]} channel(s); '
                'give one each'
            )
    info = DatasetInfo(data.name, data.num_classes, tuple(data.class_names), shape, mean, std)
    network = trained.build_network(model, info, PRECISION, resize=True)
    checksum = weights_checksum(variables)
    imported = pretrained.Imported(
        model, data.num_classes, shape[-1], variables, checksum, spec['function']
    )
    return trained.Trained(spec['function'], network, info, PRECISION, None, variables, imported)


def _input(
    field: str, spec: Mapping[str, Any], channels: int, data: DatasetInfo
) -> tuple[tuple[int, int, int], tuple[float, ...], tuple[float, ...]]:
    """(image_shape, mean, std) of what the teacher sees."""
    usual = pretrained.input_of(spec['model']['name']) or {'size': 0, 'mean': (), 'std': ()}
    mean, std = (tuple(spec[key] or usual[key]) for key in ('mean', 'std'))
    if not mean or not std:
        raise UserError(
            f'{field}.mean and .std are missing: small-image models have no usual '
            'normalisation; give those of its training, such as (0.5071, 0.4867, '
            '0.4408) and (0.2675, 0.2565, 0.2761)'
        )
    for key, values in (('mean', mean), ('std', std)):
        if len(values) != channels:
            raise UserError(
                f'{field}.{key} has {len(values)} numbers, but the model sees '
                f'{channels} channel(s); give one each'
            )
    size = spec['size'] or usual['size']
    shape = (size, size) if size else tuple(data.image_shape[:2])
    return (*shape, channels), mean, std


def make_run(
    name: str,
    directory: RunDirectory,
    model: trained.Trained,
    data: Dataset,
    par: parallel.Parallel,
) -> None:
    """Writes the teacher as a finished run, measured on the study's validation and test splits if
    those have its classes.
    """
    begin = time.perf_counter()
    tracker().busy(name, 'imports and measures it')
    trained.check_teacher(model, data.info, ())
    network = model.network.computing(model.precision, par.fast)
    assert model.imported is not None  # what has just been read from its file
    known = model.info.same_classes(data.info)
    measured: dict[str, Any] = {
        split: evaluation.evaluate(
            network, model.variables, data.source(split), par, model.precision
        )
        for split in ('val', 'test')
        if known
    }
    measured |= evaluation.forward_cost(
        network, model.variables, model.info.image_shape, model.precision
    )
    measured |= {'seconds': time.perf_counter() - begin}
    sees = {key: getattr(model.info, key) for key in ('image_shape', 'mean', 'std', 'class_names')}
    pretrained.make_run(
        directory, name, model.imported, data_name=data.info.name, measured=measured, **sees
    )
    if parallel.is_main():
        result = f'{model.info.num_classes} classes, not those of {data.info.name}'
        if known:
            result = f'test top-1 {100 * measured["test"]["top1"]:.2f} %'
        say(f'{name} · imported from {model.source} · {result}')
