"""The methods of the published tables as runs of a study, with the papers'
weights: `add(config, 'at', make)`.

Weights are those of the CIFAR-100 tables (RepDistiller, arXiv:1910.10699; mdistiller for DKD,
ReviewKD, OFD) unless a method's paper says otherwise; where they ramp a term up during 20 of
240 epochs, or train 30 of 240 beforehand, it is the same share of the epochs here. Where
authors chose a weight for each pair, this is the commonest one; configs/cifar100.py has those
of its pairs. Every method's fields expand into the config and can be overridden; what is counted
in epochs (ramps, first runs, `snapshot_epochs`) follows a run's `epochs`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from kd_jax import config as common
from kd_jax.errors import unknown

RAMP, BEFORE = 20 / 240, 30 / 240  # of the epochs

# make(objective): a run of the student; make(objective, teacher=True): of the teacher's model
Make = Callable[..., ConfigDict]


Scheme = Callable[[ConfigDict, str, ConfigDict, Make], None]


class Method(NamedTuple):
    """One run with an objective: cross entropy weighed `labels`, and
    `terms`; more is done by `scheme`.

    ramped: the terms whose weight grows from 0. scheme(config, name, run, make) changes the run
    `name` and adds others that it needs.
    """

    source: str
    labels: float
    terms: Mapping[str, Mapping[str, Any]]
    ramped: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ('teacher',)
    scheme: Scheme | None = None


def _objective(
    labels: float, terms: Mapping[str, Mapping[str, Any]], ramp: Mapping[str, Any]
) -> ConfigDict:
    objective = {
        name: common.term(name, **fields, ramp_epochs=ramp.get(name, 0.0))
        for name, fields in terms.items()
    }
    return ConfigDict(
        objective
        | ({'cross_entropy': common.term('cross_entropy', weight=labels)} if labels else {})
    )


def _before(**terms: Mapping[str, Any]) -> Scheme:
    """A first run on these terms alone, from which the student starts."""

    def scheme(config: ConfigDict, name: str, run: ConfigDict, make: Make) -> None:
        first = make(_objective(0.0, terms, {}))
        first.teachers, first.select = ('teacher',), 'last'
        first.epochs = common.share(run, BEFORE)
        first.eval_every = min(run.eval_every, first.epochs)
        if run.optim.schedule == 'step':
            first.optim.schedule, first.optim.step_epochs = 'constant', ()
        config.runs[f'{name}_before'] = first
        run.init = f'{name}_before'

    return scheme


def _assistant(config: ConfigDict, name: str, run: ConfigDict, make: Make) -> None:
    """An assistant of half the teacher's width learns from the teacher, and
    the student from the assistant.
    """
    assistant = make(run.objective.copy_and_resolve_references(), teacher=True)
    assistant.model.width, assistant.teachers = 0.5, ('teacher',)
    config.runs[f'{name}_assistant'] = assistant
    run.teachers = (f'{name}_assistant',)


def _generations(config: ConfigDict, name: str, run: ConfigDict, make: Make) -> None:
    """The student alone teaches a second one, and that a third."""
    second = make(run.objective.copy_and_resolve_references())
    second.teachers = ('alone',)
    config.runs[f'{name}_second'] = second
    run.teachers = (f'{name}_second',)


def _augmented_generations(config: ConfigDict, name: str, run: ConfigDict, make: Make) -> None:
    """What the student has learned teaches the next one, which sees its
    images more strongly changed.
    """
    first = make(run.objective.copy_and_resolve_references())
    first.teachers = ('teacher',)
    config.runs[f'{name}_first'] = first
    run.teachers, run.init = ('teacher', f'{name}_first'), f'{name}_first'
    run.augment.rotate, run.augment.cutout = 10.0, 6


def _two_teachers(config: ConfigDict, name: str, run: ConfigDict, make: Make) -> None:
    """A second teacher, three quarters as wide; the average of both
    teachers' probabilities is learned.
    """
    second = make(teacher=True)
    second.model.width = 0.75
    config.runs[f'{name}_teacher'] = second
    run.teachers = ('teacher', f'{name}_teacher')


def _average(config: ConfigDict, name: str, run: ConfigDict, make: Make) -> None:
    run.optim.ema_decay = 0.999


def _past(config: ConfigDict, name: str, run: ConfigDict, make: Make) -> None:
    run.snapshot_epochs = common.share(run, 0.1)


def _function_matching(config: ConfigDict, name: str, run: ConfigDict, make: Make) -> None:
    """Patient and consistent: mixed images, four times as long."""
    run.augment.mixup = 1.0
    run.epochs = 4 * run.epochs
    run.optim.step_epochs = tuple(4 * epoch for epoch in run.optim.step_epochs)


def _smoothing(config: ConfigDict, name: str, run: ConfigDict, make: Make) -> None:
    run.objective.cross_entropy.label_smoothing = 0.1


KL = {'kl': {'weight': 0.9, 'tau': 4.0}}

METHODS = {
    # from logits
    'kl': Method('Hinton et al. 2015', 0.1, KL),
    'soft_cross_entropy': Method(
        'Hinton et al. 2015', 0.1, {'soft_cross_entropy': {'weight': 0.9, 'tau': 4.0}}
    ),
    'logit_mse': Method('Ba and Caruana 2014', 0.1, {'logit_mse': {'weight': 0.9}}),
    'three_term': Method('', 0.0, {'three_term': {}}),
    'kl_standardized': Method(
        'Sun et al. 2024', 0.1, {'kl': {'weight': 9.0, 'tau': 2.0, 'standardize': True}}
    ),
    'dkd': Method(
        'Zhao et al. 2022', 1.0, {'dkd': {'alpha': 1.0, 'beta': 8.0, 'tau': 4.0}}, ramped=('dkd',)
    ),
    'nkd': Method('Yang et al. 2023', 1.0, {'nkd': {'gamma': 1.5, 'tau': 1.0}}),
    'dist': Method('Huang et al. 2022', 1.0, {'dist': {'weight': 2.0, 'tau': 4.0}}),
    'ensemble': Method('Hinton et al. 2015', 0.1, KL, scheme=_two_teachers),
    'one_sided': Method('', 0.1, {'kl': KL['kl'] | {'only_where': 'teacher_surer'}}),
    # from features
    'fitnet': Method('Romero et al. 2015', 1.0, {'fitnet': {'weight': 100.0}}),
    'fitnet_stages': Method('Romero et al. 2015', 0.1, KL, scheme=_before(fitnet={})),
    'at': Method('Zagoruyko and Komodakis 2017', 1.0, {'at': {'weight': 1000.0}}),
    'nst': Method('Huang and Wang 2017', 1.0, {'nst': {'weight': 50.0}}),
    'vid': Method('Ahn et al. 2019', 1.0, {'vid': {'weight': 1.0}}),
    'ab': Method('Heo et al. 2019, AAAI', 1.0, {}, teachers=(), scheme=_before(ab={})),
    'ofd': Method('Heo et al. 2019, ICCV', 1.0, {'ofd': {'weight': 1e-3}}),
    'ft': Method('Kim et al. 2018', 1.0, {'ft': {'weight': 200.0}}),
    'fsp': Method('Yim et al. 2017', 1.0, {}, teachers=(), scheme=_before(fsp={})),
    'reviewkd': Method(
        'Chen et al. 2021', 1.0, {'reviewkd': {'weight': 1.0}}, ramped=('reviewkd',)
    ),
    # from relations between examples
    'sp': Method('Tung and Mori 2019', 1.0, {'sp': {'weight': 3000.0}}),
    'cc': Method('Peng et al. 2019', 1.0, {'cc': {'weight': 0.02}}),
    'rkd': Method('Park et al. 2019', 1.0, {'rkd': {'weight': 1.0}}),
    'pkt': Method('Passalis and Tefas 2018', 1.0, {'pkt': {'weight': 30000.0}}),
    'crd': Method('Tian et al. 2020', 1.0, {'crd': {'weight': 0.8}}),
    'crd_kl': Method(
        'Tian et al. 2020', 1.0, {'crd': {'weight': 0.8}, 'kl': {'weight': 1.0, 'tau': 4.0}}
    ),
    # other teachers, other ways
    'assistant': Method('Mirzadeh et al. 2020', 0.1, KL, scheme=_assistant),
    'born_again': Method('Furlanello et al. 2018', 0.1, KL, scheme=_generations),
    'mutual': Method(
        'Zhang et al. 2018', 1.0, {'kl': {'weight': 1.0, 'tau': 1.0}}, teachers=('self:peer',)
    ),
    'mean_teacher': Method(
        'Tarvainen and Valpola 2017',
        1.0,
        {'kl': {'weight': 1.0, 'tau': 1.0}},
        ramped=('kl',),
        teachers=('self:ema',),
        scheme=_average,
    ),
    'temporal': Method(
        'Yang et al. 2019',
        1.0,
        {'kl': {'weight': 1.0, 'tau': 2.0}},
        teachers=('self:snapshot',),
        scheme=_past,
    ),
    'iterative': Method('Xie et al. 2020', 0.1, KL, scheme=_augmented_generations),
    'function_matching': Method(
        'Beyer et al. 2022', 0.0, {'kl': {'weight': 1.0, 'tau': 1.0}}, scheme=_function_matching
    ),
    # without a teacher
    'label_smoothing': Method('Szegedy et al. 2016', 1.0, {}, teachers=(), scheme=_smoothing),
    'virtual_teacher': Method(
        'Yuan et al. 2020', 0.9, {'virtual_teacher': {'weight': 0.1}}, teachers=()
    ),
}


def add(config: ConfigDict, method: str, make: Make, name: str = 'student') -> ConfigDict:
    """Adds the runs of a method to a study that has 'teacher' and 'alone'; returns
    its last one, called `name`.

    make: gives a run of the student, or of the teacher's model, for an objective (None:
    the labels), without teachers.
    """
    if method not in METHODS:
        raise unknown('method', method, METHODS)
    chosen = METHODS[method]
    run = make(ConfigDict())
    run.objective = _objective(
        chosen.labels, chosen.terms, dict.fromkeys(chosen.ramped, common.share(run, RAMP))
    )
    run.teachers = chosen.teachers
    if chosen.scheme is not None:
        chosen.scheme(config, name, run, make)
    config.runs[name] = run
    return run


def add_all(config: ConfigDict, make: Make) -> None:
    """Adds every method to a study that has 'teacher' and 'alone', each under its own name."""
    for method in METHODS:
        add(config, method, make, method)
