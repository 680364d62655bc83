"""Which tensor of a file is which array of a model, by the names of a code base, and the
sentence that says what does not fit.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import numpy as np

from kd_jax import models
from kd_jax.errors import UserError
from kd_jax.pretrained import reader
from kd_jax.pretrained.code_bases import MARKS, RULES, Rule, family_of, input_of

LEAVES = {
    'kernel': 'weight',
    'bias': 'bias',
    'scale': 'weight',
    'mean': 'running_mean',
    'var': 'running_var',
}
# PyTorch's prefixes of the auxiliary heads that a field `aux` switches
AUXILIARY = ('AuxLogits.', 'aux1.', 'aux2.')
CLASSES, CHANNELS = 7919, 7907  # stand in shapes for what the file decides; no layer is as wide
MOST = 12  # names in a sentence


class Fit(NamedTuple):
    """How the tensors of a file fit to a model under one rule; the
    three lists are empty if they do.
    """

    places: dict[str, tuple[str, ...]]  # PyTorch's name -> path in our variables
    sizes: dict[int, int]  # of the file, for `CLASSES` and `CHANNELS`
    missing: list[str]
    left: list[str]
    wrong: list[str]

    def misfits(self) -> int:
        return len(self.missing) + len(self.left) + len(self.wrong)


def has_auxiliary(tensors: Mapping[str, Any]) -> bool:
    return any(key.startswith(AUXILIARY) for key in tensors)


def shapes_of(name: str, overrides: Mapping[str, Any]) -> dict[tuple[str, ...], tuple[int, ...]]:
    """{path: shape} of the model's variables; `CLASSES` and `CHANNELS`
    stand for what the file decides.
    """
    return _cached_shapes(
        name,
        tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in overrides.items())),
    )


@cache
def _cached_shapes(
    name: str, overrides: tuple[tuple[str, Any], ...]
) -> dict[tuple[str, ...], tuple[int, ...]]:
    # the plain forms have the same variables, and are traced in half the time
    model = models.build(name, CLASSES, fast=False, **dict(overrides))
    size = (input_of(name) or {'size': 32})['size']
    tree = jax.eval_shape(
        partial(model.init, train=False),
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, size, size, CHANNELS), 'float32'),
    )
    return {path: tuple(leaf.shape) for path, leaf in flax.traverse_util.flatten_dict(tree).items()}


def _torch_shape(shape: Sequence[int], leaf: str) -> tuple[int, ...]:
    """PyTorch's order: `[kh, kw, in, out]` -> `[out, in, kh, kw]`, `[in, out]` -> `[out, in]`."""
    if leaf != 'kernel':
        return tuple(shape)
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else (shape[1], shape[0])


def names_of(
    shapes: Mapping[tuple[str, ...], Any], rule: Rule
) -> dict[str, tuple[str, ...]] | None:
    """{PyTorch's name: path of ours}; None if the code that the rule is about has no such model."""
    blocks = list(
        dict.fromkeys(path[1] for path in shapes if re.fullmatch(r'stage\d+_block\d+', path[1]))
    )
    blocks.sort(key=lambda block: [int(n) for n in re.findall(r'\d+', block)])
    try:
        names = {
            f'{rule("/".join(path[1:-1]), blocks)}.{LEAVES.get(path[-1], path[-1])}': path
            for path in shapes
        }
    except UserError:  # how a rule says so
        return None
    return names if len(names) == len(shapes) else None


def _fit(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[tuple[str, ...], tuple[int, ...]], rule: Rule
) -> Fit | None:
    places = names_of(shapes, rule)
    if places is None:
        return None
    expected = {key: _torch_shape(shapes[place], place[-1]) for key, place in places.items()}
    sizes: dict[int, int] = {}
    # A kernel decides before a bias.
    for key in sorted(expected, key=lambda key: -len(expected[key])):
        if key in tensors and tensors[key].ndim == len(expected[key]):
            for want, size in zip(expected[key], tensors[key].shape, strict=True):
                if want in (CLASSES, CHANNELS) and size:
                    sizes.setdefault(want, size)
    expected = {key: tuple(sizes.get(n, n) for n in shape) for key, shape in expected.items()}
    given = {key for key in tensors if not key.endswith(reader.COUNTER)}
    both = [key for key in expected if key in given]
    shown = {
        key: str(shape).replace(str(CLASSES), '?').replace(str(CHANNELS), '?')
        for key, shape in expected.items()
    }
    wrong = [
        f'{key} is {tensors[key].shape}, should be {shown[key]}'
        for key in both
        if tensors[key].shape != expected[key]
    ]
    missing = [key for key in expected if key not in given]
    left = [key for key in tensors if key in given and key not in expected]
    return Fit(places, sizes, missing, left, wrong)


def best_fit(
    tensors: Mapping[str, np.ndarray], name: str, overrides: Mapping[str, Any]
) -> Fit | None:
    """Under the rule with the fewest misfits; None if the published code has no such model."""
    shapes = shapes_of(name, overrides)
    if overrides.get('aux') is False:
        tensors = {key: x for key, x in tensors.items() if not key.startswith(AUXILIARY)}
    found = [
        fit for rule in RULES[family_of(name)] if (fit := _fit(tensors, shapes, rule)) is not None
    ]
    return min(found, key=Fit.misfits, default=None)


def misfit(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    name: str,
    overrides: Mapping[str, Any],
    fit: Fit,
) -> str:
    """The sentence about tensors that do not fit."""
    parts, room = [], MOST
    for word, names in (
        ('missing', fit.missing),
        ('left over', fit.left),
        ('of another shape', fit.wrong),
    ):
        if names:
            shown = [
                n if n.isprintable() and len(n) < 200 else repr(n[:80])
                for n in names[: max(room, 1)]
            ]
            more = f' and {len(names) - len(shown)} more' if len(names) > len(shown) else ''
            parts.append(f'{len(names)} {word}: {", ".join(shown)}{more}')
            room -= len(shown)
    given = f' with {in_words(overrides)}' if overrides else ''
    others = [other for other in fitting(tensors) if other != name or overrides]
    alternatives = ' or '.join(f'{o!r}{" without overrides" if o == name else ""}' for o in others)
    hint = (
        f'these are the weights of {alternatives}'
        if others
        else 'no model of the zoo has exactly these tensors'
    )
    return f'{path} does not hold the weights of {name!r}{given}: {"; ".join(parts)}; {hint}'


def fitting(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The models of the zoo whose tensors these are exactly."""
    known = (
        name
        for name in models.MODELS
        if any(MARKS[rule] in tensors for rule in RULES.get(family_of(name), ()))
    )
    return [name for name in known if fits(tensors, name)]


def fits(tensors: Mapping[str, np.ndarray], name: str) -> bool:
    """Whether the tensors are exactly those of the model called `name`."""
    switch = any(field.name == 'aux' for field in dataclasses.fields(family_of(name)))
    fit = best_fit(tensors, name, {'aux': has_auxiliary(tensors)} if switch else {})
    return fit is not None and not fit.misfits()


def in_words(overrides: Mapping[str, Any]) -> str:
    return ', '.join(f'{key}={value}' for key, value in overrides.items())
