"""PyTorch weights as Flax variables, complete both ways, and as a finished run that can teach.

`load(path, model)` reads a file without PyTorch (`kd_jax.pretrained.reader`), finds the published
code whose names fit (`RULES`) and returns the variables of a model of the zoo. Every tensor of the
file has its place in the model and the other way round, or nothing is loaded. `make_run` writes the
run directory that `python -m kd_jax.pretrained` is for.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax
import numpy as np

from kd_jax import models
from kd_jax.errors import UserError
from kd_jax.pretrained import matching, reader
from kd_jax.pretrained.code_bases import RULES, SOURCES, family_of, input_of
from kd_jax.pretrained.run import Imported, make_run

__all__ = ['OWN', 'RULES', 'SOURCES', 'Imported', 'input_of', 'load', 'make_run', 'sources']

NEW = ('adapter', 'heads')  # overrides that add layers of our own
OWN = ('num_classes', 'frozen', 'fast', 'axis_name', 'dtype')  # fields that are no overrides


def sources(name: str, variables: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The code bases of `SOURCES` whose weights are those of the model
    called `name`, without overrides.

    variables: the model's, or their shapes, where they are known; they are traced otherwise.
    """
    family = family_of(name)
    paths = (
        flax.traverse_util.flatten_dict(variables) if variables else matching.shapes_of(name, {})
    )
    rules = {rule for rule in RULES.get(family, ()) if matching.names_of(paths, rule)}
    return tuple(
        source
        for source, (ours, theirs) in SOURCES.items()
        if ours.fullmatch(name) and rules & {*theirs}
    )


def load(
    path: Path, model: Mapping[str, Any], note: Callable[[str], None] = lambda sentence: None
) -> Imported:
    """The weights in a PyTorch file as those of `model`, {'name': ..., and overrides; None
    keeps the variant's own value}.

    The numbers of classes and of the images' channels are those of the file. A family's field `aux`
    follows the file too, unless it is given; with `aux=False` the file may hold auxiliary heads.
    `note(sentence)` tells of choices that were made in reading.

    Raises:
      UserError: if the file cannot be read, or holds anything but exactly the model's tensors; the
        sentence lists what is missing, left over or of another shape, and names the model whose
        weights these are if there is one.
    """
    overrides = {key: value for key, value in model.items() if value is not None and key != 'name'}
    name = str(model.get('name'))
    family = family_of(name)
    for key in OWN:
        if key in overrides:
            raise UserError(
                f'{key} is no override of imported weights; leave it out: it '
                'follows from the file and the program'
            )
    for key in NEW:
        if overrides.get(key):
            raise UserError(
                f'PyTorch weights of {name!r} have no tensors for '
                f'{key}={overrides[key]}; import them without it'
            )
    if family not in RULES:
        known = ', '.join(sorted(n for n in models.MODELS if family_of(n) in RULES))
        raise UserError(
            f'there is no PyTorch form of {name!r}; weights can be imported for {known}'
        )
    tensors = reader.read(path, note)
    switch = any(field.name == 'aux' for field in dataclasses.fields(family))
    if switch:
        overrides.setdefault('aux', matching.has_auxiliary(tensors))
    best = matching.best_fit(tensors, name, overrides)
    if best is None:
        raise UserError(
            f'there is no PyTorch form of {name!r} with {matching.in_words(overrides)}; '
            'import it without them'
        )
    if best.misfits():
        raise UserError(matching.misfit(path, tensors, name, overrides, best))
    values = {key: _float32(path, key, x) for key, x in tensors.items() if x.dtype.kind == 'f'}
    flat = {place: _converted(path, key, values[key]) for key, place in best.places.items()}
    with open(path, 'rb') as file:
        checksum = hashlib.file_digest(file, 'sha256').hexdigest()
    variables = flax.traverse_util.unflatten_dict(flat)
    return Imported(
        {'name': name, **overrides},
        best.sizes[matching.CLASSES],
        best.sizes[matching.CHANNELS],
        variables,
        checksum,
        str(path),
    )


def _float32(path: Path, key: str, x: np.ndarray) -> np.ndarray:
    """The tensor as float32; `UserError` unless all of it is finite, needed or not."""
    with np.errstate(over='ignore'):
        x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise UserError(
            f'tensor {key[:80]!r} of {path} holds values that are not finite; take a '
            'checkpoint of a run that went well'
        )
    return x


def _converted(path: Path, key: str, x: np.ndarray) -> np.ndarray:
    """The tensor in our order."""
    if key.rpartition('.')[2] == matching.LEAVES['var'] and x.size and x.min() < 0:
        raise UserError(
            f'tensor {key[:80]!r} of {path} holds the variance {x.min():g}, which cannot be below '
            '0; take a checkpoint of a run that went well'
        )
    return np.ascontiguousarray(x.transpose((2, 3, 1, 0)) if x.ndim == 4 else x.T)
