"""The objectives: `build(config)` over the explicit table `OBJECTIVES`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kd_jax import fields, own
from kd_jax.errors import UserError, renamed, unknown
from kd_jax.objectives import foreign
from kd_jax.objectives.common import Loss, Objective, ensemble_logits
from kd_jax.objectives.contrast import CRD
from kd_jax.objectives.features import AB, AT, FSP, FT, NST, OFD, VID, FitNet, ReviewKD
from kd_jax.objectives.heads import DeepSupervision, SelfDistillation, SelfHint
from kd_jax.objectives.relations import CC, PKT, RKD, SP
from kd_jax.objectives.responses import (
    DIST,
    DKD,
    KL,
    NKD,
    CrossEntropy,
    LogitMSE,
    SoftCrossEntropy,
    ThreeTerm,
    VirtualTeacher,
)

OBJECTIVES: dict[str, type[Loss]] = {
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

# Names beside those of the losses in what is logged of a training step.
RESERVED = ('epoch', 'learning_rate', 'loss', 'peer_loss', 'split', 'step', 'top1')


def defaults(name: str) -> dict[str, Any]:
    """The user's fields of the loss called `name`, `weight` and the ramp
    included, and their defaults.

    Raises:
      UserError: for a name that is neither in `OBJECTIVES` nor one of the user's own.
    """
    return fields.defaults(_known(name))


def swept(name: str) -> tuple[str, ...]:
    """The fields of the loss called `name` that may be numbers which only a running step
    knows; errors as `defaults`.
    """
    return fields.swept(_known(name))


def _known(name: str) -> type[Loss]:
    if own.is_own(name):
        return foreign.class_of(name)
    if name not in OBJECTIVES:
        raise unknown('objective', name, OBJECTIVES)
    return OBJECTIVES[name]


def loss_of(label: str, given: Mapping[str, Any]) -> str:
    """The name in `OBJECTIVES` of the loss that stands under `label` in a config: its field
    `loss`, or the label itself.
    """
    name = (given.get('loss') if hasattr(given, 'keys') else None) or label
    if not isinstance(name, str):
        raise UserError(
            f'the loss of {label} is {name!r}; it must be one of {", ".join(OBJECTIVES)}'
        )
    return name


def check(label: str, given: Mapping[str, Any], path: str) -> None:
    """Raises `UserError` for a field of the loss under `label`, which stands at `path` in a config,
    that is unknown or whose value is not allowed. How a label must be written `build` says.
    """
    name = loss_of(label, given)
    if own.is_own(name) or name in OBJECTIVES:
        fields.check(_known(name), {k: v for k, v in given.items() if k != 'loss'}, path)


def build(
    config: Mapping[str, Mapping[str, Any]],
    teacher_weights: Sequence[float] = (),
    num_classes: int | None = None,
    axis_name: str | None = None,
    fast: bool = False,
) -> Objective:
    """The objective of a run.

    Args:
      config: label -> the fields that differ from the defaults (None: the default),
        and `loss`, a name in `OBJECTIVES`, where the label is not one. A loss whose
        weight is always 0 is dropped.
      teacher_weights: one number for each of the run's teachers, in any scale;
        none for a run without teachers.
      num_classes: of the data, for the checks that need it.
      axis_name: the device axis, where the batch is split over one.
      fast: learned layers in the form that is fast on a CPU.

    Raises:
      UserError: for a label, a loss, a field, a value or a combination that makes no sense.
    """
    teacher_weights = tuple(float(w) for w in teacher_weights)
    if teacher_weights and not (
        all(0 <= w < math.inf for w in teacher_weights) and any(teacher_weights)
    ):
        raise UserError(
            f'the teacher weights {teacher_weights} must be finite, 0 or more, and not '
            'all 0; equal weights are 1 each'
        )
    losses = []
    for label in config:
        loss = _loss(label, config[label], axis_name=axis_name, fast=fast)
        if loss.weight or (loss.ramp_epochs and loss.ramp_from):
            loss.check(f'objective.{label}', num_classes)
            if loss.only_where != 'always' and not loss.needs_teacher:
                raise UserError(
                    f'objective.{label}.only_where is {loss.only_where!r}, but this term has '
                    "no teacher; set it to 'always'"
                )
            losses.append((label, loss))
    if not losses:
        raise UserError(
            'the objective has no term with a weight above 0 (given: '
            f'{", ".join(config) or "nothing"}); give one of {", ".join(OBJECTIVES)}'
        )
    _check_teachers(losses, len(teacher_weights))
    objective = Objective(tuple(losses), teacher_weights)
    _check_submodules(objective)
    return objective


def uses_unlabelled(config: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a term of an objective, as `build` takes it, counts examples without a label."""
    losses = (_loss(label, config[label]) for label in config)
    return any(
        loss.uses_unlabelled()
        for loss in losses
        if loss.weight or (loss.ramp_epochs and loss.ramp_from)
    )


def _loss(label: str, given: Mapping[str, Any], **setting: Any) -> Loss:
    """What stands under `label` in a config, its fields checked one by one. setting: the
    fields that the program sets.
    """
    taken = {'name', 'parent', *dir(Objective), *Objective.__dataclass_fields__}
    if not str(label).isidentifier() or label in RESERVED or label in taken:
        raise UserError(
            f'objective has the label {label!r}; a label must be letters, digits and '
            'underscores, not beginning with a digit, and no name that the program '
            'uses itself: call it kl_late, say'
        )
    name: Any = loss_of(label, given)
    if not own.is_own(name) and name not in OBJECTIVES:
        error = unknown(
            'objective' if name == label else f'loss of objective.{label}', name, OBJECTIVES
        )
        raise UserError(
            f"{error}; a label of your own names its loss: objective.{label} = term('kl')"
        )
    values = (
        {field: given[field] for field in given if field != 'loss'}
        if hasattr(given, 'keys')
        else given
    )
    cls = _known(name)
    return cls(**fields.check(cls, values, f'objective.{label}'), **setting)


def _check_teachers(losses: Iterable[tuple[str, Loss]], count: int) -> None:
    """There are teachers if and only if a loss learns from them."""
    from_teacher = [label for label, loss in losses if loss.needs_teacher]
    if from_teacher and not count:
        raise UserError(
            f'objective {from_teacher[0]!r} learns from a teacher but the run has none; '
            'name one in teachers, or set the weight of the objective to 0'
        )
    if count and not from_teacher:
        raise UserError(
            f'the run has {count} teacher(s) but no term of its objective uses them '
            f'(terms: {", ".join(label for label, _ in losses)}); add a term such '
            'as kl, or take the teachers out'
        )


def _check_submodules(objective: Objective) -> None:
    """No loss is called what another one's part for one of several teachers is called."""
    labels = dict(objective.losses)
    for label, loss in objective.losses:
        both = [
            name for name in objective.submodules(label, loss) if name != label and name in labels
        ]
        if both:
            raise UserError(
                f'objective has the labels {label!r} and {both[0]!r}, but with '
                f'{len(objective.teacher_weights)} teachers {both[0]!r} is the part of {label!r} '
                'that learns from one of them; give one of the two another label'
            )


__getattr__ = renamed(
    __name__,
    {'LIMITS': 'fields.own', 'TRACED': 'swept', 'Term': 'Loss', 'WeightedSum': 'Objective'},
)

__all__ = [
    'OBJECTIVES',
    'Loss',
    'Objective',
    'build',
    'defaults',
    'ensemble_logits',
    'loss_of',
    'swept',
]
