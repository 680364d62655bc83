"""Data of the user's own: a function of the fields `data` of a config, or of nothing."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kd_jax import own
from kd_jax.data.arrays import Raw
from kd_jax.data.dataset import ArraySource, Dataset
from kd_jax.errors import UserError

FORM = "{'train': (image, label), 'test': (image, label)}, perhaps with 'val'"


def load(config: Any) -> Raw:
    """What the function called `config.source` returns: `Raw`, a `Dataset`, or a mapping of splits
    to (image uint8 `[N, H, W, C]` or `[N, H, W]`, label `[N]`).

    Raises:
      UserError: if there is no such function, or it returns something else.
    """
    title = f'data source {config.source!r}'
    found = own.load(config.source, 'data source')
    if not callable(found):
        raise UserError(f'{title} is {type(found).__name__}; it must be a function')
    needed = [one for one in own.parameters(found).values() if one.default is one.empty]
    if len(needed) > 1:
        told = ', '.join(one.name for one in needed)
        raise UserError(
            f'{title} is a function of ({told}); it must be one of nothing, or of the fields data '
            'of the config'
        )
    try:
        given = found(config) if needed else found()
    except UserError:
        raise
    except Exception as error:  # it may raise anything
        raise UserError(f'{title} failed: {type(error).__name__}: {error}') from error
    return raw_of(given, title, config.source.rpartition(':')[2])


def raw_of(data: Any, title: str, name: str) -> Raw:
    """Data in any of the forms of `load`. title: for sentences; name: of the data set."""
    if isinstance(data, Raw):
        return data
    if isinstance(data, Dataset):
        splits = {part: getattr(data, part) for part in ('train', 'val', 'test')}
        data = splits | {'class_names': data.info.class_names}
    if not isinstance(data, Mapping) or not {'train', 'test'} <= set(data) <= {
        'train', 'val', 'test', 'class_names',
    }:  # fmt: skip
        told = f' with {", ".join(map(str, data))}' if isinstance(data, Mapping) else ''
        raise UserError(f'{title} is a {type(data).__name__}{told}; it must be {FORM}')
    splits = {part: _pair(data[part], title, part) for part in data if part != 'class_names'}
    names = tuple(map(str, data.get('class_names', ())))
    return Raw(name, splits['train'], splits.get('val'), splits['test'], names)


def _pair(given: Any, title: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(given, ArraySource):
        return given.image, given.label
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise UserError(
            f'{title} has {type(given).__name__} as {part}; it must be (image, label), two arrays'
        )
    image, label = map(np.asarray, given)
    return (image[..., None] if image.ndim == 3 else image), label
