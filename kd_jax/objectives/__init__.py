"""The objectives: `build(config)` over the explicit table `OBJECTIVES`."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from kd_jax.errors import UserError, unknown
from kd_jax.objectives.common import Term, WeightedSum, ensemble_logits
from kd_jax.objectives.contrast import CRD
from kd_jax.objectives.features import AB, AT, FSP, FT, NST, OFD, VID, FitNet, ReviewKD
from kd_jax.objectives.heads import DeepSupervision, SelfDistillation, SelfHint
from kd_jax.objectives.relations import CC, PKT, RKD, SP
from kd_jax.objectives.responses import DIST, DKD, KL, NKD, CrossEntropy, LogitMSE, SoftCrossEntropy, ThreeTerm, VirtualTeacher

OBJECTIVES: dict[str, type[Term]] = {
    'ab': AB,
    'at': AT,
    'cc': CC,
    'crd': CRD,
    'cross_entropy': CrossEntropy,
    'deep_supervision': DeepSupervision,
    'dist': DIST,
    'dkd': DKD,
    'fitnet': FitNet,
    'fsp': FSP,
    'ft': FT,
    'kl': KL,
    'logit_mse': LogitMSE,
    'nkd': NKD,
    'nst': NST,
    'ofd': OFD,
    'pkt': PKT,
    'reviewkd': ReviewKD,
    'rkd': RKD,
    'self_distillation': SelfDistillation,
    'self_hint': SelfHint,
    'soft_cross_entropy': SoftCrossEntropy,
    'sp': SP,
    'three_term': ThreeTerm,
    'vid': VID,
    'virtual_teacher': VirtualTeacher,
}

_NOT_NEGATIVE = (lambda value: 0 <= value < math.inf, 'a finite number, 0 or more')

_COUNT = (lambda value: value >= 1, 'at least 1')
ONLY_WHERE = ('always', 'teacher_right', 'teacher_surer')

# What a field of this name allows, in every objective that has it.
LIMITS = {
    'weight': _NOT_NEGATIVE,
    'ramp_epochs': _NOT_NEGATIVE,
    'ramp_from': _NOT_NEGATIVE,
    'tau': (lambda value: 0 < value < math.inf, 'a finite number greater than 0'),
    'lam': _NOT_NEGATIVE,
    'alpha': _NOT_NEGATIVE,
    'beta': _NOT_NEGATIVE,
    'gamma': _NOT_NEGATIVE,
    'distance': _NOT_NEGATIVE,
    'angle': _NOT_NEGATIVE,
    'margin': _NOT_NEGATIVE,
    'reconstruction': _NOT_NEGATIVE,
    'rate': (lambda value: 0 < value < math.inf, 'a finite number greater than 0'),
    'correct': (lambda value: 0 < value < 1, 'greater than 0 and less than 1'),
    'momentum': (lambda value: 0 <= value < 1, 'at least 0 and less than 1'),
    'dim': _COUNT,
    'mid': _COUNT,
    'negatives': _COUNT,
    'only_where': (lambda value: value in ONLY_WHERE, ' or '.join(map(repr, ONLY_WHERE))),
    'label_smoothing': (lambda value: 0 <= value < 1, 'at least 0 and less than 1'),
    'class_weights': (
        lambda value: all(isinstance(w, Real) and 0 <= w < math.inf for w in value),
        'finite numbers, each 0 or more',
    ),
}

TRACED = ('weight', 'tau', 'lam', 'alpha', 'beta', 'gamma')  # fields that may be numbers that only a running step knows

_OWN = ('axis_name', 'fast', 'parent', 'name')  # set by the program, not by the user


def defaults(name: str) -> dict[str, Any]:
    """The user's fields of the objective called `name`, `weight` and the ramp included, and their defaults.

    Raises:
      UserError: for a name that is not in `OBJECTIVES`.
    """
    if name not in OBJECTIVES:
        raise unknown('objective', name, OBJECTIVES)
    return {f.name: f.default for f in dataclasses.fields(OBJECTIVES[name]) if f.name not in _OWN}


def build(
    config: Mapping[str, Mapping[str, Any]],
    teacher_weights: Sequence[float] = (),
    num_classes: int | None = None,
    axis_name: str | None = None,
    fast: bool = False,
) -> WeightedSum:
    """The objective of a run.

    Args:
      config: a name in `OBJECTIVES` -> the fields that differ from the defaults (None: the default). A term whose
        weight is always 0 is dropped.
      teacher_weights: one number for each of the run's teachers, in any scale; none for a run without teachers.
      num_classes: of the data, for the checks that need it.
      axis_name: the device axis, where the batch is split over one.
      fast: learned layers in the form that is fast on a CPU.

    Raises:
      UserError: for a name, a field, a value or a combination that makes no sense.
    """
    teacher_weights = tuple(float(w) for w in teacher_weights)
    if teacher_weights and not (all(0 <= w < math.inf for w in teacher_weights) and any(teacher_weights)):
        raise UserError(
            f'the teacher weights {teacher_weights} must be finite, 0 or more, and not all 0; equal weights are 1 each'
        )
    terms = []
    for name in config:
        fields = _fields(name, config[name])
        term = OBJECTIVES[name](**fields, axis_name=axis_name, fast=fast)
        if term.weight or (term.ramp_epochs and term.ramp_from):
            term.check(f'objective.{name}', num_classes)
            if term.only_where != 'always' and not term.needs_teacher:
                raise UserError(
                    f"objective.{name}.only_where is {term.only_where!r}, but this term has no teacher; set it to 'always'"
                )
            terms.append((name, term))
    if not terms:
        raise UserError(
            f'the objective has no term with a weight above 0 (given: {", ".join(config) or "nothing"}); '
            f'give one of {", ".join(OBJECTIVES)}'
        )
    taught = [name for name, term in terms if term.needs_teacher]
    if taught and not teacher_weights:
        raise UserError(
            f'objective {taught[0]!r} learns from a teacher but the run has none; '
            'name one in teachers, or set the weight of the objective to 0'
        )
    if teacher_weights and not taught:
        raise UserError(
            f'the run has {len(teacher_weights)} teacher(s) but no term of its objective uses them '
            f'(terms: {", ".join(name for name, _ in terms)}); add a term such as kl, or take the teachers out'
        )
    return WeightedSum(tuple(terms), teacher_weights)


def _fields(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of the objective `name`, with what is `given`, checked one by one."""
    fields = defaults(name)
    if not hasattr(given, 'keys'):
        raise UserError(f'objective.{name} is {given!r}; it must be a mapping of its fields: {", ".join(fields)}')
    for field in given:
        if field not in fields:
            raise UserError(f'objective {name!r} has no field {field!r}; its fields: {", ".join(fields)}')
        if given[field] is not None:
            fields[field] = _typed(f'objective.{name}.{field}', given[field], fields[field])
    for field, value in fields.items():
        allowed, words = LIMITS.get(field, (lambda _: True, ''))
        if not allowed(value):
            raise UserError(f'objective.{name}.{field} is {value!r}; it must be {words}')
    return fields


def _typed(path: str, value: Any, default: Any) -> Any:
    """`value` in the type of `default`: a tuple of numbers, a bool, an int, a float or a str."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if isinstance(default, tuple):
        fits, words = isinstance(value, (tuple, list)), 'a list'
        value = tuple(value) if fits else value
        if value and not default:
            default = (value,)  # an example
    elif isinstance(default, bool):
        fits, words = isinstance(value, bool), 'True or False'
    elif isinstance(default, int):
        fits, words = number and isinstance(value, Integral), 'a whole number'
    elif isinstance(default, float):
        fits, words = number, 'a number'
        value = float(value) if fits else value
    else:
        fits, words = isinstance(value, str), 'text'
    if not fits:
        raise UserError(f'{path} is {value!r}; it must be {words}, such as {default!r}')
    return value


__all__ = ['LIMITS', 'OBJECTIVES', 'TRACED', 'Term', 'WeightedSum', 'build', 'defaults', 'ensemble_logits']
