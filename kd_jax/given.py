"""What a notebook has, as fields of a config: models, teachers, data and losses as objects."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from kd_jax import config as common
from kd_jax import models, own, trained
from kd_jax.data import SOURCES, Dataset, Raw, foreign
from kd_jax.errors import UserError, unknown
from kd_jax.models.foreign import is_nnx
from kd_jax.pretrained import matching, reader


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher that is not trained here.

    network: a Flax module with its `variables`; a function of images `[B, H, W, C]` float32 that
      returns logits `[B, K]`; or a file of PyTorch weights, with `model`, its name in the zoo
      ('': the one that the tensors fit).
    mean, std: of its normalisation, one number a channel, for images in 0..1. A function without
      them gets 0..255; weights of large images have ImageNet's.
    size: side of the images it sees; 0 = its usual one, or the data's.
    """

    network: Any
    variables: Mapping[str, Any] | None = None
    model: str = ''
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    size: int = 0


@dataclasses.dataclass(frozen=True)
class Taught:
    """One of: fields of a model that is trained, a workdir, fields of `config.Imported`."""

    trains: Mapping[str, Any] | None = None
    workdir: str = ''
    imported: ConfigDict | None = None


class Names:
    """The names under which a call keeps objects that cannot be imported."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def keep(self, name: str, thing: Any) -> str:
        """'__main__:name'; `UserError` if this call has something else under it."""
        if self._kept.setdefault(name, thing) is not thing:
            raise UserError(
                f'there are two different things called {name!r}; give one of them another name'
            )
        own.keep(f'__main__:{name}', thing)
        return f'__main__:{name}'

    def of(self, thing: Any, name: str = '') -> str:
        """The name by which a class or a function is imported, or else kept."""
        module, path = getattr(thing, '__module__', ''), getattr(thing, '__qualname__', '')
        if module and path.isidentifier() and module != '__main__':
            importable = f'{module}:{path}'
            own.trust([importable])
            try:
                if own.load(importable, 'object') is thing:
                    return importable
            except UserError:
                pass
        return self.keep(name or path.rpartition('.')[2].strip('<>') or 'own', thing)


def model(student: Any, role: str, names: Names) -> dict[str, Any]:
    """The fields `model` of a run. student: see `kd_jax.distill`."""
    if isinstance(student, str):
        return {'name': student}
    if isinstance(student, Mapping | ConfigDict):
        if not isinstance(student.get('name'), str):
            raise UserError(f"the {role} {dict(student)} has no name, such as {{'name': 'cnn'}}")
        return dict(student)
    is_linen = isinstance(student, type) and issubclass(student, nn.Module)
    if is_linen or is_nnx(student):
        return {'name': names.of(student)}
    if isinstance(student, nn.Module):
        fields = {
            field.name: getattr(student, field.name)
            for field in dataclasses.fields(student)
            if field.init
            and field.name not in ('parent', 'name', 'num_classes')
            and getattr(student, field.name) is not field.default
        }
        if all(map(_is_plain, fields.values())):
            return {'name': names.of(type(student)), **fields}
        return {'name': names.keep(type(student).__name__, student)}
    if is_nnx(type(student)):
        raise UserError(
            f'the {role} is an object of {type(student).__name__}, of flax.nnx; give its class, or '
            'a mapping of its name and fields'
        )
    raise UserError(
        f'the {role} is {_kind(student)}; it must be the name of a model, a mapping of its name '
        'and fields, or a Flax module'
    )


def _is_plain(value: Any) -> bool:
    """Whether a record can hold it."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, bool, int, float))


def teacher(given: Any, names: Names) -> Taught:
    """Of what `kd_jax.distill` takes."""
    if isinstance(given, str | Path):
        path = Path(given).expanduser()
        if path.suffix in trained.WEIGHTS:
            return teacher(Teacher(str(given)), names)
        if path.is_dir():
            return Taught(workdir=str(path))
        name = str(given)
        if own.is_own(name) or name in models.MODELS or name in models.FORMS:
            return Taught(trains={'name': name})
        raise UserError(f'{unknown("teacher", name, models.MODELS)}, and no directory or file')
    if isinstance(given, Teacher):
        return Taught(imported=_imported(given, names))
    if isinstance(given, tuple) and len(given) == 2:
        return teacher(Teacher(*given), names)
    if isinstance(given, Mapping | ConfigDict | nn.Module | type):
        return Taught(trains=model(given, 'teacher', names))
    if callable(given):
        return teacher(Teacher(given), names)
    raise UserError(
        f'the teacher is {_kind(given)}; it must be the name of a model, a workdir, a file of '
        'weights, a function of images, or kd.Teacher(module, variables, mean=..., std=...)'
    )


def _imported(given: Teacher, names: Names) -> ConfigDict:
    fields = {'mean': tuple(given.mean), 'std': tuple(given.std), 'size': given.size}
    network = given.network
    if isinstance(network, str | Path):
        name = given.model or _fitting(Path(network).expanduser())
        return ConfigDict(common.imported(str(network), name).to_dict() | fields)
    if given.model:
        raise UserError(f'the teacher has model={given.model!r}, which is for files of weights')
    if isinstance(network, nn.Module):
        if given.variables is None:
            raise UserError(
                f'the teacher {type(network).__name__} has no variables; give '
                'kd.Teacher(module, variables, mean=..., std=...), or its name to train it'
            )
        return common.own_teacher(names.keep('teacher', (network, given.variables)), **fields)
    if not callable(network):
        raise UserError(f'the teacher has {_kind(network)} as its network; give a Flax module')
    return common.own_teacher(names.of(network, 'teacher'), **fields)


def _fitting(path: Path) -> str:
    """The model of the zoo whose weights are in a file."""
    tensors = reader.read(path, lambda sentence: None)
    found = matching.fitting(tensors)
    if len(found) != 1:
        told = f'those of {" or ".join(found)}' if found else 'of no model of the zoo'
        raise UserError(
            f'{path} holds weights {told}; name one: kd.Teacher({str(path)!r}, model=...)'
        )
    return found[0]


def data(given: Any, workdir: Path, names: Names) -> dict[str, Any]:
    """The fields `data` of a study; arrays are kept in `workdir`. given: see `kd_jax.distill`."""
    if isinstance(given, str | Path):
        text = str(given)
        if own.is_own(text) or text in SOURCES:
            return {'source': text}
        if text.endswith('.npz'):
            return {'source': 'npz', 'path': text}
        if Path(text).is_dir():
            return {'source': 'idx', 'path': text}
        raise UserError(f'{unknown("data", text, SOURCES)}, and no .npz file or directory')
    if isinstance(given, Mapping | ConfigDict) and 'source' in given:
        return dict(given)
    if isinstance(given, Mapping | Dataset | Raw):
        return {'source': 'npz', 'path': str(_kept(given, workdir / 'data.npz'))}
    if callable(given):
        return {'source': names.of(given, 'data')}
    raise UserError(f'the data are {_kind(given)}; they must be {foreign.FORM}')


def _kept(given: Any, path: Path) -> Path:
    """Arrays as an .npz file, which may be there already."""
    raw = foreign.raw_of(given, 'data', 'data')
    arrays = {}
    for part in ('train', 'val', 'test'):
        pair = getattr(raw, part)
        if pair is not None:
            arrays[f'{part}_image'], arrays[f'{part}_label'] = map(np.asarray, pair)
    if raw.class_names:
        arrays['class_names'] = np.array(raw.class_names)
    if path.exists():
        with np.load(path, allow_pickle=False) as there:
            same = {*there.files} == arrays.keys() and all(
                np.array_equal(there[key], arrays[key]) for key in arrays
            )
        if not same:
            raise UserError(f'{path} holds other data than these; choose another workdir')
        return path
    unfinished = path.with_name('data.npz.part')
    with unfinished.open('wb') as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    return path


def objective(given: Any, names: Names) -> ConfigDict:
    """The terms of a run. given: see `kd_jax.distill`, a method's name apart."""
    if given is None:
        return common.distillation()
    if callable(given):
        return objective({'cross_entropy': 1.0, getattr(given, '__name__', 'own'): given}, names)
    if not isinstance(given, Mapping | ConfigDict):
        raise UserError(
            f'the objective is {_kind(given)}; it must be the name of a method, terms such as '
            "{'cross_entropy': 0.1, 'kl': {'weight': 0.9, 'tau': 4.0}}, or a function"
        )
    found = ConfigDict()
    for label, term in given.items():
        if callable(term):
            found[label] = common.term(names.of(term, label))
        elif isinstance(term, bool) or not isinstance(term, int | float | Mapping | ConfigDict):
            raise UserError(
                f'objective {label!r} is {_kind(term)}; it must be a weight, a mapping of fields, '
                'or a function'
            )
        else:
            fields = (
                dict(term) if isinstance(term, Mapping | ConfigDict) else {'weight': float(term)}
            )
            loss = fields.pop('loss', label)
            found[label] = common.term(loss if isinstance(loss, str) else names.of(loss, label))
            found[label].update(fields)
    return found


def _kind(thing: Any) -> str:
    return f'{thing!r}' if isinstance(thing, str | int | float | None) else type(thing).__name__
