"""Whether what a config says is complete, known, allowed, and has an effect."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_jax import objectives, own
from kd_jax.config import GROUPS, VALUES, Model, Run, Shared, Study
from kd_jax.errors import UserError, unknown
from kd_jax.fields import RENAMED, check
from kd_jax.fields import own as fields_of

# A field -> when it has an effect: in words, and asked of the run.
_SWITCHES: dict[str, tuple[str, Callable[[ConfigDict], bool]]] = {
    'optim.learning_rate': ('optim.teacher_factor is 0', lambda run: not run.optim.teacher_factor),
    **{
        f'optim.{name}': ("optim.name is 'sgd'", lambda run: run.optim.name == 'sgd')
        for name in ('momentum', 'nesterov')
    },
    **{
        f'optim.{name}': (
            "optim.name is 'adam' or 'adamw'",
            lambda run: run.optim.name in ('adam', 'adamw'),
        )
        for name in ('b1', 'b2', 'eps')
    },
    **{
        f'optim.{name}': ("optim.schedule is 'step'", lambda run: run.optim.schedule == 'step')
        for name in ('step_epochs', 'step_factor')
    },
    'optim.final_factor': (
        "optim.schedule is 'cosine'",
        lambda run: run.optim.schedule == 'cosine',
    ),
    'optim.decay_norm_and_bias': (
        'optim.weight_decay is more than 0',
        lambda run: run.optim.weight_decay > 0,
    ),
    'snapshot_epochs': (
        "'self:snapshot' is one of the teachers",
        lambda run: 'self:snapshot' in run.teachers,
    ),
    **{
        name: ("soft_targets is not 'live'", lambda run: run.soft_targets != 'live')
        for name in ('soft_targets_dtype', 'soft_targets_top_k')
    },
    **{
        f'data.{name}': (
            "data.source is 'folder'",
            lambda run: run.data.source == 'folder' or own.is_own(run.data.source),
        )
        for name in ('labels', 'test_share')
    },
    'data.size': (
        "data.source is 'folder' or 'tfds'",
        lambda run: run.data.source in ('folder', 'tfds') or own.is_own(run.data.source),
    ),
    'data.cache': (
        "data.source is 'folder', or data.unlabelled names files",
        lambda run: (
            run.data.source == 'folder' or own.is_own(run.data.source) or bool(run.data.unlabelled)
        ),
    ),
    **{
        f'data.{name}': (
            "data.source is 'folder' or 'tfds', or data.unlabelled names files",
            lambda run: (
                run.data.source in ('folder', 'tfds')
                or own.is_own(run.data.source)
                or bool(run.data.unlabelled)
            ),
        )
        for name in ('resize', 'interpolation', 'on_bad_image')
    },
    'data.unlabelled_share': (
        'data.unlabelled names images',
        lambda run: bool(run.data.unlabelled),
    ),
    'data.unlabelled_crops': (
        'data.unlabelled is one image file',
        lambda run: Path(run.data.unlabelled).suffix not in ('', '.npz'),
    ),
    'data.workers': (
        "data.placement is 'stream' or 'auto'",
        lambda run: run.data.placement in ('stream', 'auto'),
    ),
    'augment.rand_augment_magnitude': (
        'augment.rand_augment is more than 0',
        lambda run: run.augment.rand_augment > 0,
    ),
    'data.labels_seed': (
        'data.labels_per_class is more than 0',
        lambda run: run.data.labels_per_class > 0,
    ),
}
_NO_EFFECT = ', which has no effect; it has one only where '


def without_effect(runs: Mapping[str, ConfigDict]) -> list[str]:
    """A sentence for each value that is not the default although another one, as it is, keeps it
    from having an effect, with the names of the runs that have it.
    """
    found: dict[str, list[str]] = {}
    for name, run in runs.items():
        for path, (words, has_effect) in _SWITCHES.items():
            group, _, field = path.rpartition('.')
            value = run[group][field] if group else run[field]
            default = fields_of(GROUPS[group] if group else Run)[field].default
            if value != default and not has_effect(run):
                found.setdefault(f'{path} is {value!r}{_NO_EFFECT}{words}', []).append(name)
        for label, loss in run.objective.items():
            if loss.get('ramp_from') and not loss.get('ramp_epochs'):
                path = f'objective.{label}.ramp_from'
                words = f'objective.{label}.ramp_epochs is more than 0'
                found.setdefault(f'{path} is {loss.ramp_from!r}{_NO_EFFECT}{words}', []).append(
                    name
                )
    more = {name: run for name, run in runs.items() if run.data.unlabelled}
    if not any(objectives.uses_unlabelled(run.objective) for run in more.values()):
        words = 'a term of one of the runs needs no labels, such as kl or at'
        for name, run in more.items():
            path = f'data.unlabelled is {run.data.unlabelled!r}{_NO_EFFECT}{words}'
            found.setdefault(path, []).append(name)
    return [f'in {", ".join(names)}: {told}' for told, names in found.items()]


def _check_data(path: str, given: Mapping[str, Any]) -> None:
    """Raises `UserError` for a place or a name that the source does not look at: another data set
    was meant.
    """
    source = given['source']
    if own.is_own(source):
        return
    ignored = {
        'path': source == 'digits' and 'it is embedded; the other sources have one',
        'name': source != 'tfds' and "only 'tfds' has one",
    }
    for field, why in ignored.items():
        if given[field] and why:
            raise UserError(
                f'{path}.{field} is {given[field]!r}, but {path}.source is {source!r}, which does '
                f'not look at it ({why}); set the source, or take the {field} away'
            )


def check_study(config: ConfigDict) -> None:
    """Raises `UserError` for a field of the study, its runs apart, that is unknown
    or whose value is not allowed. What it names of the user's own may be imported then.
    """
    groups = ('data', 'augment', 'teachers', 'runs')
    _check_names('the study', config, [*groups, *fields_of(Shared), *fields_of(Study)])
    for cls in (Shared, Study):
        _check(cls, {name: config[name] for name in fields_of(cls)}, '')
    for group in ('teachers', 'runs'):
        _mapping(config[group], group)
    for group in ('data', 'augment'):
        _check(GROUPS[group], _mapping(config[group], group), group)
    _check_data('data', config.data)
    own.trust([config.data.source])


def check_run(name: str, run: ConfigDict) -> None:
    """Raises `UserError` for a field of a run that is unknown or whose value is
    not allowed, whatever the data. As `check_study`.
    """
    path = f'runs.{name}'
    _check_names(
        path, _mapping(run, path), [*fields_of(Run), *fields_of(Shared), *GROUPS, 'objective']
    )
    for cls in (Shared, Run):
        _check(cls, {key: run[key] for key in fields_of(cls)}, path)
    for group, record in GROUPS.items():
        given = _mapping(run[group], f'{path}.{group}')
        if record is Model:  # a family may have more fields, which `kd_jax.models.build` knows
            given = {key: given[key] for key in fields_of(Model) if key in given}
        _check(record, given, f'{path}.{group}')
    _check_data(f'{path}.data', run.data)
    own.trust([run.data.source, run.model.name, run.peer])
    for label, given in _mapping(run.objective, f'{path}.objective').items():
        where = f'{path}.objective.{label}'
        own.trust([objectives.loss_of(label, _mapping(given, where))])
        objectives.check(label, given, where)
    for teacher in run.teachers:
        if teacher in VALUES:
            raise UserError(
                f'{path}.teachers has {teacher!r}, which is called '
                f'{VALUES[teacher]!r} now; write that'
            )


def _check(cls: type, given: Mapping[str, Any], path: str) -> None:
    """`check` of fields that will be read as they are: only where the
    default is None a value may be.
    """
    check(cls, given, path)
    _check_names(path, given, fields_of(cls))
    for name, of in fields_of(cls).items():
        if given[name] is None and of.default is not None:
            raise UserError(
                f'{path}{"." if path else ""}{name} is None; it must '
                f'be {of.metadata["limit"].words}'
            )


def _check_names(path: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises `UserError` unless the names are those of all known fields."""
    for name in given:
        if name in RENAMED:
            raise UserError(
                f'{path}.{name} is called {RENAMED[name]} now; write {path}.{RENAMED[name]}'
            )
        if name not in known:
            raise unknown(f'field of {path}', name, known)
    for name in known:
        if name not in given:
            raise UserError(
                f'{path} has no field {name!r}; start from kd_jax.config.study() and run(), '
                'which have all, and delete none'
            )


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if not hasattr(value, 'keys'):
        raise UserError(f'{path} is {value!r}; it must be a mapping of its fields')
    return value
