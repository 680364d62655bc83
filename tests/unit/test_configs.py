"""Every config loads, says what it is, and makes a study whose parts exist."""

import importlib

import jax
import pytest
from helpers import REPOSITORY, folder_of_images

from configs import common, imagenet, methods
from kd_jax import jobs, models, objectives
from kd_jax.config import changed
from kd_jax.config_check import check_run, without_effect
from kd_jax.errors import UserError
from kd_jax.teacher_outputs import check_teachers

ROOT = REPOSITORY


# Every config file with every argument that its docstring offers.
CONFIGS = {
    'folder': ('IMAGES',),
    'digits': ('', 'few', 'regime=all'),
    'fashion_mnist': ('', 'all', *(f'method={name}' for name in methods.METHODS), 'method=all'),
    'cifar10': (None,),
    'pretrained': (None,),
    'finetune': (None,),
    'imagenet': (
        '',
        *(f'method={name}' for name in imagenet.METHODS),
        *(f'pair={name}' for name in imagenet.PAIRS),
        'data=tfds',
    ),
    'cifar100': (
        '',
        *(f'method={name}' for name in methods.METHODS),
        'all',
        'method=soft_cross_entropy,pair=resnet32x4-resnet8x4',
        'three_term,resnet56-cifar_mobilenet_v2_x0.5',
        'resnet110-resnet32',
        'wrn_40_2-cifar_shufflenet_v1',
        'cifar_vgg13-cifar_vgg8',
    ),
}


ALL = [(name, argument) for name, arguments in CONFIGS.items() for argument in arguments]


def get(name, argument):
    get_config = importlib.import_module(f'configs.{name}').get_config
    if argument == 'IMAGES':
        argument = folder_of_images()
    return get_config() if argument is None else get_config(argument)


def test_the_table_is_complete():
    assert set(CONFIGS) == {p.stem for p in (ROOT / 'configs').glob('*.py')} - {
        'common',
        'methods',
        '__init__',
    }


@pytest.mark.parametrize(('name', 'argument'), ALL)
def test_a_config_makes_a_study(name, argument):
    config = get(name, argument).lock()
    names = jobs.order(config.runs)
    if name in ('pretrained', 'imagenet'):
        file = ROOT / config.teachers.teacher.torch
        # ImageNet's is to be fetched
        assert list(config.teachers) == ['teacher'] and file.exists() == (name == 'pretrained')
    else:
        assert 'teacher' in names
    every = (argument or '').endswith('all') and 'student' not in names
    goals = methods.METHODS if every else ['student']
    expected = {'teacher', 'alone', *goals}
    # what a method needs beforehand
    own = {run for run in names if any(run.startswith(f'{goal}_') for goal in goals)}
    assert {*names, *config.teachers} == expected | own
    assert not without_effect(config.runs)
    for run_name in names:
        run = config.runs[run_name].copy_and_resolve_references()
        check_run(run_name, run)
        check_teachers(run_name, run)
        model = dict(run.model)
        models.build(model.pop('name'), 10, **model)
        objectives.build(run.objective, (1.0,) * len(run.teachers), 10)
    for goal in goals:
        assert config.runs.alone.model == config.runs[goal].model
        # the comparison is of the objective alone
        assert config.runs.alone.data == config.runs[goal].data
        longer = 4 if 'function_matching' in (goal, (argument or '').partition('=')[2]) else 1
        assert longer * config.runs.alone.epochs == config.runs[goal].epochs


def test_the_methods_have_their_papers_weights():
    """Those of the CIFAR-100 tables, and the ramps as the same share of the epochs."""
    config = get('cifar100', 'method=all')
    weights = {
        name: config.runs[name].objective[name].weight
        for name in ('fitnet', 'at', 'sp', 'cc', 'vid', 'rkd', 'pkt', 'ft')
    }
    assert weights == {
        'fitnet': 100,
        'at': 1000,
        'sp': 3000,
        'cc': 0.02,
        'vid': 1,
        'rkd': 1,
        'pkt': 30000,
        'ft': 200,
    }
    weights = {'nst': 50, 'crd': 0.8, 'ofd': 1e-3, 'dist': 2}
    assert {name: config.runs[name].objective[name].weight for name in weights} == weights
    assert (
        config.runs.dkd.objective.dkd.ramp_epochs
        == config.runs.reviewkd.objective.reviewkd.ramp_epochs
        == 20
    )
    assert config.runs.ab_before.epochs == config.runs.fsp_before.epochs == 30
    assert (
        config.runs.crd.objective.crd.negatives == 16384
        and config.runs.kl_standardized.objective.kl.weight == 9
    )
    assert get(
        'fashion_mnist', 'method=dkd'
    ).runs.student.objective.dkd.ramp_epochs == pytest.approx(1 / 12)
    assert (
        config.runs.crd_kl.objective.kl.weight == 1
        and config.runs.at.objective.cross_entropy.weight == 1
    )


@pytest.mark.parametrize(
    ('argument', 'model', 'labels'),
    [
        ('', 'cnn', 20),
        ('all', 'cnn', 0),
        ('method=kl', 'resnet8', 0),
        ('method=at', 'resnet8', 0),
        ('few,method=at', 'resnet8', 20),
        ('method=all', 'resnet8', 0),
    ],
)
def test_fashion_mnist_has_few_labels_where_they_are_seen_often_enough_or_asked_for(
    argument, model, labels
):
    alone = get('fashion_mnist', argument).runs.alone
    assert (alone.model.name, alone.data.labels_per_class) == (model, labels)


def test_weights_that_depend_on_the_pair():
    found = {}
    for pair in (
        'resnet56-resnet20',
        'wrn_40_2-wrn_40_1',
        'resnet32x4-cifar_shufflenet_v2',
        'resnet56-cifar_mobilenet_v2_x0.5',
    ):
        runs = get('cifar100', f'all,pair={pair}').runs
        found[pair] = runs.dkd.objective.dkd.beta, runs.reviewkd.objective.reviewkd.weight
    assert list(found.values()) == [(2, 0.6), (6, 5), (8, 8), (8, 1)]
    assert get('cifar100', 'dkd').runs.student.objective.dkd.beta == 2


def test_the_pages_name_every_method_and_every_objective():
    pages = ('methods.md', 'losses.md')
    text = ''.join((ROOT / 'docs' / page).read_text() for page in pages)
    names = (*methods.METHODS, *objectives.OBJECTIVES)
    assert [name for name in names if f'`{name}`' not in text] == []


@pytest.mark.parametrize('name', CONFIGS)
def test_a_config_says_what_it_is(name):
    text = importlib.import_module(f'configs.{name}').__doc__
    for part in (
        'arXiv:',
        f'python -m kd_jax.main --config=configs/{name}.py',
        'uration',
        'xpected',
    ):
        assert part in text


def test_unknown_arguments_name_what_is_allowed():
    with pytest.raises(
        UserError,
        match=(
            r"unknown config argument 'pair=resnet56'; allowed: "
            r'method=kl \| .*pair=resnet56-resnet20'
        ),
    ):
        get('cifar100', 'pair=resnet56')


def test_shared_fields_follow_the_study_unless_a_run_has_its_own():
    config = get('digits', 'few')
    config.data.path = '/elsewhere'
    config.seeds = (7,)
    config.runs.student.data.labels_seed = 3
    assert config.runs.teacher.data.path == config.runs.student.data.path == '/elsewhere'
    assert config.runs.alone.seeds == (7,)
    assert (
        config.data.labels_seed,
        config.runs.student.data.labels_seed,
        config.runs.alone.data.labels_seed,
    ) == (0, 3, 0)


def test_distillation_weights_are_hintons():
    objective = common.distillation(alpha=0.9, tau=2.0)
    assert objective.cross_entropy.weight == pytest.approx(0.1)
    assert (objective.kl.weight, objective.kl.tau) == (0.9, 2.0)


def test_the_default_device_count_of_the_tests_is_four():
    assert jax.device_count() == 4


def test_what_is_shown_of_a_study_is_what_differs_from_the_defaults():
    study = common.study()
    study.seeds, study.augment.crop = (0, 1), 2
    study.runs.teacher = common.run(study, 'resnet8')
    study.runs.student = common.run(study, 'cnn', common.distillation(alpha=0.25, tau=2.0))
    study.runs.student.objective.late = common.term('kl', ramp_epochs=3.0)
    study.runs.student.update_from_flattened_dict(
        {'teachers': ('teacher',), 'optim.learning_rate': 0.5, 'augment.crop': 0}
    )
    assert changed(study) == {
        'seeds': (0, 1),
        'data': {'source': 'digits'},
        'augment': {'crop': 2},
        'runs': {
            'teacher': {'model': {'name': 'resnet8'}, 'objective': {'cross_entropy': {}}},
            'student': {
                'model': {'name': 'cnn'},
                'teachers': ('teacher',),
                'optim': {'learning_rate': 0.5},
                'augment': {'crop': 0},
                'objective': {
                    'cross_entropy': {'weight': 0.75},
                    'kl': {'weight': 0.25, 'tau': 2.0},
                    'late': {'loss': 'kl', 'ramp_epochs': 3.0},
                },
            },
        },
    }
