"""Every field of a study and of a run, once: its default, what it allows, what it means.

Configs start from `study()` and `run()`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from kd_jax import data, objectives, optim, own
from kd_jax.data import augment
from kd_jax.errors import UserError
from kd_jax.fields import (
    RENAMED,
    Limit,
    choice,
    defaults,
    field,
    flag,
    is_number,
    names,
    number,
    optional,
    several,
    text,
)
from kd_jax.fields import own as fields_of
from kd_jax.networks import PRECISIONS

# What a family allows stands on its own field; see `kd_jax.models.build`.
FAMILY = Limit(lambda value: True, 'what the family of the model allows')


def _seeds(values: Any) -> bool:
    whole = all(type(seed) is int and seed >= 0 for seed in values)
    return bool(values) and whole and len(set(values)) == len(values)


def _weight(value: Any) -> bool:
    return is_number(value) and 0 <= value < float('inf')


def _targets(value: Any) -> bool:
    number = len(value) < 7 and value.isascii() and value.isdigit() and 0 < int(value) <= MOST_VIEWS
    return value in ('live', 'exact') or number


SEEDS = 'one or more different whole numbers, each 0 or more, such as (0, 1)'
MOST_VIEWS = 65536
TARGETS = f"'live', 'exact' or a number of views up to {MOST_VIEWS}, such as '8'"


@dataclasses.dataclass(frozen=True)
class Model:
    """The fields `model` of a run: a name in `kd_jax.models.MODELS` and
    overrides; None = the model's own.
    """

    name: str = text()  # in `kd_jax.models.MODELS`
    width: float | None = optional(float, FAMILY)  # channel multiplier
    depth: float | None = optional(float, FAMILY)  # multiplier of the blocks in each stage
    kernel: int | None = optional(int, FAMILY)  # of the blocks' 3x3 convolutions
    dropout: float | None = optional(float, FAMILY)  # rate before the classifier
    # hidden channels of a residual adapter after every block; None = no adapters
    adapter: int | None = optional(int, FAMILY)
    # stages with an auxiliary head, such as (1, 2); None = none
    heads: tuple[int, ...] | None = optional(tuple, FAMILY)
    # predict the average of all heads' probabilities
    average_heads: bool | None = optional(bool, FAMILY)
    # Inception-v3 and GoogLeNet: with their own auxiliary heads
    aux: bool | None = optional(bool, FAMILY)


@dataclasses.dataclass(frozen=True)
class Run:
    """The fields of a run that are no groups."""

    # runs ('teacher', 'teacher/seed0'), imported teachers, workdirs; 'self:ema',
    # 'self:snapshot', 'self:peer'
    teachers: tuple[str, ...] = names()
    # one a teacher; () = equal
    teacher_weights: tuple[float, ...] = several((), _weight, 'finite numbers, each 0 or more')
    # between snapshots for 'self:snapshot'
    snapshot_epochs: float = number(1.0, above=0, words='greater than 0')
    peer: str = text()  # model of the second student, 'self:peer'; '' = the same as the first
    # 'live': the teachers run in every step; 'exact' or '8': their
    # logits for all (8) views are kept
    soft_targets: str = field('live', _targets, TARGETS)
    soft_targets_dtype: str = choice('float16', 'float16', 'float32')  # in which those are kept
    # keep so many classes only; 0 = all
    soft_targets_top_k: int = number(0, at_least=0, at_most=65536)
    # start from this run, workdir or file of PyTorch weights instead of at random
    init: str = text()
    # side in pixels of the images that the network sees; 0 = the data's, or that of what it starts
    # from
    size: int = number(0, at_least=0, at_most=2**14)
    # 'objective.kl.tau=1,4; seed=0,1': a run for each combination, trained together; '' = one run
    sweep: str = text()
    # of the order and the views of the images; None = the seed
    order_seed: int | None = optional(int, Limit(lambda value: value >= 0, '0 or more'))
    batch_size: int = number(64, at_least=1, at_most=2**20)  # over all devices
    # passes over the training images, those of data.unlabelled apart; fractions count
    epochs: float = number(30.0, above=0, words='greater than 0')
    # epochs between validations, each with a checkpoint
    eval_every: float = number(1.0, above=0, words='greater than 0')
    # validations without a better top-1
    patience: int = number(0, at_least=0, words='0 (never stop early) or more')
    # weights that are tested and that teach: the best on validation, or the last
    select: str = choice('best', 'best', 'last')


@dataclasses.dataclass(frozen=True)
class Shared:
    """The fields of a study that its runs follow unless they have their own;
    besides `data` and `augment`.
    """

    # each run trains once a seed; a student's teacher is the one of the same seed
    seeds: tuple[int, ...] = field((0,), _seeds, SEEDS)
    # of the networks' arithmetic; parameters and losses are float32
    precision: str = choice('float32', *PRECISIONS)


def _profile(value: Any) -> bool:
    return not value or (
        len(value) == 2 and all(type(n) is int for n in value) and 0 <= value[0] < value[1]
    )


@dataclasses.dataclass(frozen=True)
class Study:
    """The other fields of a study."""

    # 'auto': jit on one device, pmap on several
    parallel: str = choice('auto', 'auto', 'jit', 'pmap')
    # 0 = all (of a CPU's cores, as many as get 16 images of a batch each)
    devices: int = number(0, at_least=0)
    # in one call of the compiled program
    steps_per_dispatch: int = number(0, at_least=0, words='0 (the usual number) or more')
    # False turns off what only makes a CPU faster (layers in other forms,
    # allocator, cores as devices)
    fast: bool = flag(True)
    # (first, last) step of which each run writes a trace to <workdir>/<run>/seed<k>/profile
    profile: tuple[int, ...] = field(
        (), _profile, 'two step numbers, such as --config.profile="(10,20)", or "()"'
    )
    # steps between lines of the training's losses, besides those at validations
    log_every: int = number(100, at_least=0, words='0 (at validations only) or more')
    tensorboard: bool = flag(True)  # write TensorBoard events
    wandb: str = text()  # Weights & Biases project; '' = off


@dataclasses.dataclass(frozen=True)
class Imported:
    """A teacher in `study().teachers` that is no run: weights in a file of PyTorch's, or something
    of the user's own.
    """

    # such as 'mine:teacher': a function of images [B, H, W, C] in 0..255 that returns logits, or
    # (Flax module, variables)
    function: str = text()
    torch: str = text()  # .pth, .pt, .bin, .safetensors: a state dict, or a checkpoint with one
    model: str = text()  # a name in kd_jax.models.MODELS, or a mapping of `name` and overrides
    # 0 = its usual one, or the data's
    size: int = number(0, at_least=0, words='0 (the default) or a side in pixels')
    # for images in 0..1, as it was trained; () = ImageNet's, or of a function none at all
    mean: tuple[float, ...] = several((), is_number, 'numbers, one a channel')
    std: tuple[float, ...] = several((), is_number, 'numbers, one a channel')  # likewise


# The groups of a run's fields.
GROUPS = {
    'model': Model,
    'optim': optim.Settings,
    'data': data.Settings,
    'augment': augment.Settings,
}
VALUES = {'self:average': 'self:ema', 'self:past': 'self:snapshot'}  # teachers by their old names


def study() -> ConfigDict:
    """What the runs of a study share. A run's `seeds`, `precision`, `data` and `augment` follow
    these unless it has its own.
    """
    c = ConfigDict(defaults(Shared) | defaults(Study))
    for group in ('data', 'augment'):
        c[group] = _group(GROUPS[group])
    c.teachers = ConfigDict()  # name -> imported(): PyTorch weights that teach
    c.runs = ConfigDict()  # name -> run()
    return c


def run(
    of: ConfigDict, model: str | Mapping[str, Any], objective: ConfigDict | None = None
) -> ConfigDict:
    """A run of the study `of` that trains `model`, a name or a mapping of `name` and other fields;
    without an objective, on the labels alone.
    """
    c = _group(Run)
    for group in ('model', 'optim'):
        c[group] = _group(GROUPS[group])
    c.model.update({'name': model} if isinstance(model, str) else model)
    # one entry a loss, under a label of your own
    c.objective = labels() if objective is None else objective
    for group in ('data', 'augment'):
        c[group] = ConfigDict({name: of[group].get_oneway_ref(name) for name in of[group]})
    for name in defaults(Shared):
        c[name] = of.get_oneway_ref(name)
    return c


def _group(cls: type) -> ConfigDict:
    """The fields of a record as a config, those without a default of their own
    as placeholders of their type.
    """
    fields = fields_of(cls)
    usual = {
        name: placeholder(type(f.metadata['example'])) if f.default is None else f.default
        for name, f in fields.items()
    }
    return ConfigDict(usual)


def follow(study: ConfigDict) -> ConfigDict:
    """`study`, in which what the runs have in common with it follows it from now on,
    as in those that `run` makes.
    """
    for run in study.runs.values():
        for shared in ('data', 'augment'):
            for name in study[shared]:
                if run[shared][name] == study[shared][name]:
                    run[shared][name] = study[shared].get_oneway_ref(name)
        for shared in defaults(Shared):
            if run[shared] == study[shared]:
                run[shared] = study.get_oneway_ref(shared)
    return study


def changed(of: ConfigDict) -> dict[str, Any]:
    """Of the study `of` the source of its data and the fields that are not what `study`, `run` and
    `term` make them, nested as they are in it.
    """
    fields = of.copy_and_resolve_references().to_dict()
    found = _different(fields, study().to_dict() | {'teachers': {}, 'runs': {}})
    found['data'] = {'source': fields['data']['source'], **found.get('data', {})}
    for name, one in fields['runs'].items():
        usual = run(of, '', ConfigDict()).copy_and_resolve_references().to_dict()
        found['runs'][name] = _different(one, usual)
        for label, loss in one['objective'].items():
            terms = term(loss.get('loss', label)).to_dict() | {'loss': label}
            found['runs'][name]['objective'][label] = _different(loss, terms)
    return found


def _different(fields: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _different(value, usual.get(name, {})) if isinstance(value, Mapping) else value
        for name, value in fields.items()
        if name not in usual or value != usual[name]
    }


def share(run: ConfigDict, of_epochs: float) -> Any:
    """A share of the run's epochs, for a field that is counted in them; it follows `run.epochs`,
    also where that is overridden: `objective.kl.ramp_epochs = share(run, 0.1)`.
    """
    return run.get_oneway_ref('epochs') * of_epochs


def imported(torch: str, model: str | Mapping[str, Any]) -> ConfigDict:
    """A teacher whose weights are a file of PyTorch's; name it in `study().teachers`. model: a name
    in the zoo, or a mapping of `name` and overrides.
    """
    return ConfigDict(defaults(Imported) | {'torch': torch, 'model': model})


def own_teacher(function: str, **fields: Any) -> ConfigDict:
    """A teacher of the user's own, see `Imported.function`; name it in `study().teachers`."""
    return ConfigDict(defaults(Imported) | {'function': function} | fields)


def term(name: str, **fields: Any) -> ConfigDict:
    """All fields of the loss `name`, with `fields` changed, so that each can be
    overridden on the command line.

    It stands in an objective under its own name, or under a label of yours:
    `objective.kl_late = term('kl', tau=1.0)`. A name such as 'mylosses:jsd' means a loss of your
    own, see `kd_jax.objectives.foreign`.
    """
    if own.is_own(name):
        own.trust([name])
    return ConfigDict({'loss': name} | objectives.defaults(name) | fields)


def labels(**fields: Any) -> ConfigDict:
    """Cross-entropy with the labels alone."""
    return ConfigDict({'cross_entropy': term('cross_entropy', **fields)})


def distillation(alpha: float = 0.9, tau: float = 4.0) -> ConfigDict:
    """Hinton et al. 2015: (1 - alpha) CE + alpha tau^2 KL."""
    return ConfigDict(
        {
            'cross_entropy': term('cross_entropy', weight=1 - alpha),
            'kl': term('kl', weight=alpha, tau=tau),
        }
    )


def arguments(text: str, **allowed: tuple[str | None, ...]) -> dict[str, str | None]:
    """The argument of a config, `configs/x.py:key=value,key=value`, as a dict.

    allowed: key -> its values, the default first (None: what it is if left out). A value alone
    means the first key that allows it.

    Raises:
      UserError: for another key or value.
    """
    chosen = {key: values[0] for key, values in allowed.items()}
    for part in filter(None, text.split(',')):
        key, equals, value = part.partition('=')
        if not equals:
            value, key = key, next((k for k, values in allowed.items() if part in values), '')
        if key not in allowed or value not in allowed[key]:
            raise UserError(
                f'unknown config argument {part!r}; allowed: '
                + '; '.join(
                    f'{k}={" | ".join(filter(None, values))}' for k, values in allowed.items()
                )
            )
        chosen[key] = value
    return chosen


def upgraded(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config as another version recorded it, in today's names; what it did
    not know yet has its default.
    """
    recorded = {RENAMED.get(key, key): value for key, value in run.items()}
    if 'teachers' in recorded:
        recorded['teachers'] = [VALUES.get(teacher, teacher) for teacher in recorded['teachers']]
    if 'objective' in recorded:
        recorded['objective'] = {
            label: _completed_loss(label, given) for label, given in recorded['objective'].items()
        }
    for group, cls in GROUPS.items():
        if group in recorded:
            recorded[group] = defaults(cls) | recorded[group]
    return defaults(Run) | defaults(Shared) | recorded


def _completed_loss(label: str, given: Mapping[str, Any]) -> dict[str, Any]:
    name = objectives.loss_of(label, given)
    return (
        {'loss': name}
        | (objectives.defaults(name) if name in objectives.OBJECTIVES else {})
        | dict(given)
    )
