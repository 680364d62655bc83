"""PyTorch weights as teachers of a study: `config.teachers.<name> = {'torch': file, 'model': name, ...}`."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kd_jax import evaluate, parallel, pretrained, step, teachers
from kd_jax.data import Splits
from kd_jax.errors import UserError
from kd_jax.monitor import say, warn
from kd_jax.workdir import RunDirectory

FIELDS = {'torch': '', 'model': '', 'size': 0, 'mean': (), 'std': ()}


def check(name: str, given: Mapping[str, Any], runs: Iterable[str]) -> dict[str, Any]:
    """All fields of an imported teacher, `model` as a mapping of its name and overrides.

    Raises:
      UserError: for a field that is unknown or missing, a value out of range, or the name of a run.
    """
    if name in runs:
        raise UserError(f'{name!r} is both an imported teacher and a run; give one of them another name')
    for field in given:
        if field not in FIELDS:
            raise UserError(f'teachers.{name} has no field {field!r}; its fields: {", ".join(FIELDS)}')
    spec = FIELDS | dict(given)
    for field in ('torch', 'model'):
        if not spec[field]:
            raise UserError(f"teachers.{name}.{field} is missing; write {{'torch': 'resnet50.pth', 'model': 'resnet50'}}")
    spec['model'] = {'name': spec['model']} if isinstance(spec['model'], str) else dict(spec['model'])
    if spec['size'] < 0:
        raise UserError(f'teachers.{name}.size is {spec["size"]}; it must be 0 (the default) or a side in pixels')
    return spec


def load(name: str, spec: Mapping[str, Any], directory: RunDirectory, data: Splits) -> teachers.Trained:
    """The imported teacher: read from its directory if an earlier call left it there, otherwise from the file.

    Raises:
      UserError: for a file that is not the weights of the model, other weights than those in the directory, or an input
        that must be named.
    """
    path = Path(spec['torch']).expanduser()
    if directory.finished() and not path.exists():  # the weights are in the directory
        return teachers.load(directory)
    imported = pretrained.load(path, spec['model'], warn)
    if directory.finished():
        directory.check_same({**directory.info()['config'], 'model': imported.model, 'sha256': imported.checksum})
        return teachers.load(directory)
    facts = {'name': data.name, 'num_classes': imported.num_classes, 'class_names': data.class_names}
    facts |= _input(f'teachers.{name}', spec, imported.channels, data)
    network = teachers.build_network(imported.model, facts, resize=True)
    return teachers.Trained(spec['torch'], network, facts, None, imported.variables, imported)


def _input(field: str, spec: Mapping[str, Any], channels: int, data: Splits) -> dict[str, Any]:
    """{'image_shape', 'mean', 'std'} of what the teacher sees."""
    usual = pretrained.input_of(spec['model']['name']) or {'size': 0, 'mean': (), 'std': ()}
    mean, std = (tuple(spec[key] or usual[key]) for key in ('mean', 'std'))
    if not mean or not std:
        raise UserError(
            f'{field}.mean and .std are missing: small-image models have no usual normalisation; give those of its training, '
            'such as (0.5071, 0.4867, 0.4408) and (0.2675, 0.2565, 0.2761)'
        )
    for key, values in (('mean', mean), ('std', std)):
        if len(values) != channels:
            raise UserError(f'{field}.{key} has {len(values)} numbers, but the model sees {channels} channel(s); give one each')
    size = spec['size'] or usual['size']
    shape = (size, size) if size else tuple(data.train.image.shape[1:3])
    return {'image_shape': (*shape, channels), 'mean': mean, 'std': std}


def make_run(name: str, directory: RunDirectory, trained: teachers.Trained, data: Splits, par: parallel.Parallel) -> None:
    """Writes the teacher as a finished run, measured on the study's validation and test splits."""
    begin = time.perf_counter()
    teachers.check_teacher(trained, data)
    fn = step.make_eval_step(student=trained.network, teachers=(), teacher_weights=(), axis_name=par.axis_name)
    fn, variables = par.compile(fn, arguments=4), par.replicate(trained.variables)
    measured = {
        split: evaluate.evaluate(fn, par, variables, (), evaluate.on_device(par, getattr(data, split)))
        for split in ('val', 'test')
    }
    measured |= evaluate.forward_cost(trained.network, trained.variables, trained.facts['image_shape'])
    facts = {key: trained.facts[key] for key in ('image_shape', 'mean', 'std', 'class_names')}
    measured |= {'seconds': time.perf_counter() - begin}
    pretrained.make_run(directory, name, trained.imported, data_name=data.name, measured=measured, **facts)
    if parallel.is_main():
        say(f'{name} · imported from {trained.source} · test top-1 {100 * measured["test"]["top1"]:.2f} %')
