"""How an objective is built from a config: its defaults, labels, and what bad input is told."""

import dataclasses

import jax
import numpy as np
import pytest
from absl import flags
from logit_losses import K, given, random_logits
from ml_collections import ConfigDict, config_flags

from configs import common
from kd_jax import objectives
from kd_jax.errors import UserError
from kd_jax.fields import number
from kd_jax.objectives import OBJECTIVES, Loss, build, defaults, swept
from kd_jax.objectives import logits as pure


@pytest.mark.parametrize('name', sorted(OBJECTIVES))
def test_defaults_are_the_users_fields_and_build_the_objective(name):
    fields = defaults(name)
    assert not {'axis_name', 'parent', 'name'} & set(fields)
    shared = {'weight': 1.0, 'ramp_epochs': 0.0, 'ramp_from': 0.0, 'only_where': 'always'}
    assert shared.items() <= fields.items()
    assert dataclasses.MISSING not in fields.values()
    built = build(
        {name: fields},
        (1.0,) if OBJECTIVES[name].needs_teacher else (),
        num_classes=K,
        axis_name='batch',
    )
    assert built.losses == ((name, OBJECTIVES[name](axis_name='batch')),)


def test_defaults_are_the_documented_ones():
    assert (
        defaults('cross_entropy').items() >= {'label_smoothing': 0.0, 'class_weights': ()}.items()
    )
    assert defaults('kl')['tau'] == defaults('soft_cross_entropy')['tau'] == 4.0
    own = {'lam': 1.0, 'beta': 1.0, 'tau': 4.0, 'printed': False}
    assert defaults('three_term').items() >= own.items()
    plain = {'standardize': False}
    assert defaults('dkd').items() >= ({'alpha': 1.0, 'beta': 8.0, 'tau': 4.0} | plain).items()
    assert defaults('nkd').items() >= ({'gamma': 1.5, 'tau': 1.0} | plain).items()
    assert defaults('dist').items() >= ({'beta': 1.0, 'gamma': 1.0, 'tau': 1.0} | plain).items()
    assert defaults('virtual_teacher').items() >= {'correct': 0.99, 'tau': 20.0}.items()
    for name in ('kl', 'soft_cross_entropy', 'logit_mse', 'three_term'):
        assert defaults(name).items() >= plain.items()


def test_labels_that_do_not_meet_are_taken():
    """`late_1` is no part of `late` with one teacher, nor of a loss that learns from the
    ensemble, nor is `late_2` of two.
    """
    for loss, label, weights in (
        ('kl', 'late_1', (1.0,)),
        ('dkd', 'late_1', (1.0, 1.0)),
        ('kl', 'late_2', (1.0, 1.0)),
    ):
        module = build({'late': {'loss': loss}, label: {'loss': 'kl'}}, weights)
        assert [name for name, _ in module.losses] == ['late', label]


def test_a_term_names_its_loss_and_can_be_overridden_under_its_label():
    """As `python -m kd_jax.main --config.runs.student.objective.kl_late.tau=2.` does it."""
    config, values = common.study(), flags.FlagValues()
    run = config.runs.student = common.run(config, 'cnn', common.distillation())
    run.objective.kl_late = common.term('kl', tau=1.0)
    field = '--config.runs.student.objective.kl_late'
    argv = ['main', f'{field}.tau=2.', f'{field}.ramp_epochs=3.']
    config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=argv)
    values(argv)
    config = values.config.runs.student.objective
    assert set(config.kl_late) == {'loss', *defaults('kl')} and config.kl_late.loss == 'kl'
    assert dict(build(config, (1.0,)).losses) == {
        'cross_entropy': OBJECTIVES['cross_entropy'](weight=1 - 0.9),
        'kl': OBJECTIVES['kl'](weight=0.9, tau=4.0),
        'kl_late': OBJECTIVES['kl'](tau=2.0, ramp_epochs=3.0),
    }
    assert common.labels().cross_entropy.loss == 'cross_entropy'


# Numbers that only a running step knows


def test_the_fields_that_a_sweep_may_vary():
    named = {'weight', 'tau', 'lam', 'alpha', 'beta', 'gamma'}
    for name in OBJECTIVES:
        assert set(swept(name)) == named & set(defaults(name))
    assert swept('dkd') == ('weight', 'alpha', 'beta', 'tau')
    with pytest.raises(UserError, match="unknown objective 'dkkd'; did you mean 'dkd'"):
        swept('dkkd')


def test_hparams_are_the_numbers_of_all_losses_by_label():
    module = build({'cross_entropy': {'weight': 2}, 'late': {'loss': 'dkd', 'beta': 3}}, (1.0,))
    own = module.hparams()
    assert own == {
        'objective.cross_entropy.weight': 2.0,
        'objective.late.weight': 1.0,
        'objective.late.alpha': 1.0,
        'objective.late.beta': 3.0,
        'objective.late.tau': 4.0,
    }
    assert all(type(value) is float for value in own.values())
    assert module.with_hparams(own) == module.with_hparams({}) == module
    other = {
        'objective.late.tau': 2.0,
        'objective.late.fast': True,
        'objective.kl.tau': 9.0,
        'optim.learning_rate': 1.0,
    }
    assert module.with_hparams(other).hparams() == own | {'objective.late.tau': 2.0}
    assert not dict(module.with_hparams(other).losses)['late'].fast


@pytest.mark.parametrize('name', OBJECTIVES)
def test_every_loss_takes_its_numbers_from_outside(name):
    """Its values with numbers that a running step knows are tested in test_losses.py."""
    made = build({'mine': {'loss': name}}, (1.0,) * OBJECTIVES[name].needs_teacher)
    own = {field: 0.7 + 0.01 * k for k, field in enumerate(swept(name))}
    numbers = {f'objective.mine.{field}': value for field, value in own.items()}
    assert made.hparams().keys() == numbers.keys()
    assert made.with_hparams(numbers).losses == (('mine', OBJECTIVES[name](**own)),)


def test_a_step_takes_weights_and_temperatures_when_it_runs():
    """Value and gradient as with the same numbers written down, also for the numbers."""
    inputs = given(random_logits(83), random_logits(84))
    ramp = {'ramp_epochs': 4.0, 'ramp_from': 0.5}
    made = build({'cross_entropy': {}, 'late': {'loss': 'kl', **ramp}}, (1.0,))
    own = {'cross_entropy': {'weight': 0.7}, 'late': {'weight': 2.0, 'tau': 1.5}}
    numbers = {
        f'objective.{label}.{field}': value
        for label, fields in own.items()
        for field, value in fields.items()
    }

    def total(logits, numbers, module=made):
        module, student = module.with_hparams(numbers), inputs.student.replace(logits=logits)
        values = module.apply({}, student, (inputs.teacher,), inputs.batch)
        return sum(w * values[label].sum() for label, w in module.weights(1.0).items())

    down = build({'cross_entropy': own['cross_entropy'], 'late': made_late(own, ramp)}, (1.0,))

    @jax.jit
    def both(logits, numbers):
        written = jax.value_and_grad(lambda z: total(z, {}, down))(logits)
        return written, jax.value_and_grad(total, argnums=(0, 1))(logits, numbers)

    written, (value, (gradient, to_numbers)) = both(inputs.student.logits, numbers)
    np.testing.assert_allclose(value, written[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, written[1], rtol=1e-5, atol=1e-6)
    assert np.isfinite(list(to_numbers.values())).all() and all(to_numbers.values())


def made_late(own, ramp):
    return {'loss': 'kl', **own['late'], **ramp}


# build


def test_build_takes_a_config_dict_and_turns_lists_into_tuples():
    config = ConfigDict(
        {'cross_entropy': {'class_weights': [1, 2], 'label_smoothing': 0.1, 'weight': 2}, 'kl': {}}
    )
    module = build(config, [1, 1], num_classes=2)
    assert module.losses == (
        (
            'cross_entropy',
            OBJECTIVES['cross_entropy'](class_weights=(1, 2), label_smoothing=0.1, weight=2.0),
        ),
        ('kl', OBJECTIVES['kl']()),
    )
    assert module.teacher_weights == (1.0, 1.0)
    assert isinstance(hash(module), int)


def test_terms_that_never_count_are_dropped():
    config = {
        'cross_entropy': {'weight': 0.0, 'ramp_epochs': 5.0},
        'logit_mse': {'weight': 0.0},
        'kl': {'weight': 0.0, 'ramp_epochs': 5.0, 'ramp_from': 1.0},  # fades out
        'soft_cross_entropy': {'ramp_epochs': 5.0},
    }
    assert [name for name, _ in build(config, (1.0,)).losses] == ['kl', 'soft_cross_entropy']
    assert [name for name, _ in build({'cross_entropy': {}, 'kl': {'weight': 0.0}}).losses] == [
        'cross_entropy'
    ]


def test_none_means_the_default():
    assert build({'kl': {'tau': None}}, (1.0,)).losses == (('kl', OBJECTIVES['kl'](tau=4.0)),)


def test_a_new_method_is_one_class_and_one_line(monkeypatch):
    class Halved(Loss):
        share: float = number(0.5, at_least=0)

        def __call__(self, student, teacher, batch):
            return self.share * pure.kl(student.logits, teacher.logits, 1.0)

    monkeypatch.setitem(objectives.OBJECTIVES, 'halved', Halved)
    one_four, even = np.float32([[0.0, np.log(3.0)]]), np.float32([[7.0, 7.0]])
    inputs = given(one_four, even, [0])
    apply = jax.jit(build({'halved': {}}, (1.0,)).apply)
    values = apply({}, inputs.student, (inputs.teacher,), inputs.batch)
    np.testing.assert_allclose(values['halved'], [0.0719205], rtol=1e-5)


@pytest.mark.parametrize(
    ('config', 'teacher_weights', 'sentence'),
    [
        (
            {'kll': {}},
            (1.0,),
            "unknown objective 'kll'; did you mean 'kl'\\? known: .*cross_entropy, .*kl, ",
        ),
        (
            {'kl': {'temperature': 2.0}},
            (1.0,),
            "unknown field of objective.kl 'temperature'; known: .*tau",
        ),
        ({'kl': {'axis_name': 'x'}}, (1.0,), "unknown field of objective.kl 'axis_name'; known: "),
        ({'kl': 4.0}, (1.0,), 'objective.kl is 4.0; it must be a mapping of its fields: .*tau'),
        (
            {'kl': {'tau': 0.0}},
            (1.0,),
            'objective.kl.tau is 0.0; it must be greater than 0',
        ),
        ({'kl': {'tau': -1}}, (1.0,), 'objective.kl.tau is -1.0'),
        ({'kl': {'tau': float('nan')}}, (1.0,), 'objective.kl.tau is nan'),
        (
            {'kl': {'tau': 'warm'}},
            (1.0,),
            "objective.kl.tau is 'warm'; it must be a number, such as 4.0",
        ),
        ({'kl': {'tau': True}}, (1.0,), 'objective.kl.tau is True; it must be a number'),
        (
            {'three_term': {'printed': 1}},
            (1.0,),
            'objective.three_term.printed is 1; it must be True or False',
        ),
        (
            {'three_term': {'lam': -0.5}},
            (1.0,),
            'objective.three_term.lam is -0.5; it must be a finite number, 0 or more',
        ),
        ({'kl': {'weight': -1.0}}, (1.0,), 'objective.kl.weight is -1.0'),
        ({'kl': {'weight': float('inf')}}, (1.0,), 'objective.kl.weight is inf'),
        (
            {'kl': {'ramp_epochs': -2.0}},
            (1.0,),
            'objective.kl.ramp_epochs is -2.0; it must be a finite number, 0 or more',
        ),
        (
            {'cross_entropy': {'label_smoothing': 1.0}},
            (),
            'objective.cross_entropy.label_smoothing is 1.0; .* less than 1',
        ),
        (
            {'cross_entropy': {'label_smoothing': -0.1}},
            (),
            'objective.cross_entropy.label_smoothing is -0.1',
        ),
        (
            {'cross_entropy': {'class_weights': (1.0, 2.0)}},
            (),
            'class_weights has 2 numbers but the data has 5 classes',
        ),
        (
            {'cross_entropy': {'class_weights': (1, 1, 1, 1, -1)}},
            (),
            'class_weights is .*; it must be finite numbers',
        ),
        ({'cross_entropy': {'class_weights': 3.0}}, (), 'class_weights is 3.0; it must be a list'),
        (
            {'cross_entropy': {'class_weights': ('a',) * 5}},
            (),
            'class_weights is .*; it must be finite numbers',
        ),
        (
            {'dkd': {'alpha': -0.5}},
            (1.0,),
            'objective.dkd.alpha is -0.5; it must be a finite number, 0 or more',
        ),
        (
            {'dkd': {'beta': -1.0}},
            (1.0,),
            'objective.dkd.beta is -1.0; it must be a finite number, 0 or more',
        ),
        (
            {'dkd': {'tau': 0.0}},
            (1.0,),
            'objective.dkd.tau is 0.0; it must be greater than 0',
        ),
        (
            {'nkd': {'gamma': -1.5}},
            (1.0,),
            'objective.nkd.gamma is -1.5; it must be a finite number, 0 or more',
        ),
        (
            {'dist': {'gamma': float('inf')}},
            (1.0,),
            'objective.dist.gamma is inf; it must be a finite number, 0 or more',
        ),
        (
            {'virtual_teacher': {'correct': 1.0}},
            (),
            'objective.virtual_teacher.correct is 1.0; .* less than 1',
        ),
        (
            {'virtual_teacher': {'correct': 0.0}},
            (),
            'objective.virtual_teacher.correct is 0.0; .* greater than 0',
        ),
        (
            {'virtual_teacher': {'correct': 0.2}},
            (),
            'correct is 0.2; with 5 classes .* more than 0.2, such as 0.99',
        ),
        (
            {'virtual_teacher': {}},
            (1.0,),
            'has 1 teacher\\(s\\) but no term of its objective uses them',
        ),
        (
            {'kl': {'standardize': 1}},
            (1.0,),
            'objective.kl.standardize is 1; it must be True or False',
        ),
        (
            {'kl': {'only_where': 'teacher_left'}},
            (1.0,),
            (
                'unknown value of objective.kl.only_where '
                "'teacher_left'.*always, teacher_right, teacher_surer"
            ),
        ),
        (
            {'virtual_teacher': {'only_where': 'teacher_right'}},
            (),
            "only_where is 'teacher_right', but this term has no teacher",
        ),
        ({'kl': {'only_where': True}}, (1.0,), 'objective.kl.only_where is True'),
        ({}, (), 'no term with a weight above 0 \\(given: nothing\\)'),
        ({'kl': {'weight': 0.0}}, (1.0,), 'no term with a weight above 0 \\(given: kl\\)'),
        (
            {'cross_entropy': {}, 'kl': {}},
            (),
            "objective 'kl' learns from a teacher but the run has none",
        ),
        (
            {'cross_entropy': {}},
            (1.0,),
            'has 1 teacher\\(s\\) but no term of its objective uses them .*add a term such as kl',
        ),
        ({'kl': {}}, (1.0, -1.0), 'teacher weights \\(1.0, -1.0\\) must be'),
        ({'kl': {}}, (0.0, 0.0), 'teacher weights \\(0.0, 0.0\\) must be'),
        ({'kl': {}}, (float('nan'),), 'teacher weights \\(nan,\\) must be'),
        (
            {'late': {}},
            (1.0,),
            (
                "unknown objective 'late'; .*known: ab, .*; a label of your own "
                ".*objective.late = term\\('kl'\\)"
            ),
        ),
        (
            {'late': {'loss': 'kll'}},
            (1.0,),
            "unknown loss of objective.late 'kll'; did you mean 'kl'\\? .*known: .*; a label of",
        ),
        (
            {'late': {'loss': 'kl', 'tua': 1.0}},
            (1.0,),
            "unknown field of objective.late 'tua'; did you mean 'tau'",
        ),
        (
            {'late': {'loss': 'kl', 'tau': 0.0}},
            (1.0,),
            'objective.late.tau is 0.0; it must be greater than 0',
        ),
        (
            {'late': {'loss': 'kl'}},
            (),
            "objective 'late' learns from a teacher but the run has none",
        ),
        (
            {'late': {'loss': 'virtual_teacher', 'correct': 0.2}},
            (),
            'objective.late.correct is 0.2; with 5 classes',
        ),
        (
            {'kl.late': {'loss': 'kl'}},
            (1.0,),
            "label 'kl.late'; a label must be letters, digits and underscores.*kl_late",
        ),
        ({'2kl': {'loss': 'kl'}}, (1.0,), "label '2kl'; a label must be"),
        ({'top1': {'loss': 'kl'}}, (1.0,), "label 'top1'; .* no name that the program uses"),
        ({'losses': {'loss': 'kl'}}, (1.0,), "label 'losses'; .* no name that the program uses"),
        (
            {'late': {'loss': 'fitnet'}, 'late_1': {'loss': 'kl'}},
            (1.0, 1.0),
            (
                "labels 'late' and 'late_1', but with 2 teachers 'late_1' is the part of "
                "'late'.*; give one of the two another"
            ),
        ),
    ],
)
def test_bad_input_is_one_sentence(config, teacher_weights, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        build(config, teacher_weights, num_classes=K)
    assert '\n' not in str(caught.value)


def test_defaults_of_an_unknown_objective_names_the_known_ones():
    with pytest.raises(UserError, match="unknown objective 'logit_mes'; did you mean 'logit_mse'"):
        defaults('logit_mes')


@pytest.mark.parametrize(
    ('name', 'fields', 'field'),
    [
        ('dkd', {}, 'beta'),
        ('nkd', {}, 'gamma'),
        ('dist', {}, 'beta'),
        ('dist', {'gamma': 0.0}, 'beta'),
        *(
            (name, {'standardize': True}, 'standardize')
            for name in ('kl', 'soft_cross_entropy', 'logit_mse', 'three_term')
        ),
        ('dkd', {'beta': 0.0, 'standardize': True}, 'standardize'),
        ('nkd', {'gamma': 0.0, 'standardize': True}, 'standardize'),
        ('dist', {'beta': 0.0, 'standardize': True}, 'standardize'),
    ],
)
def test_what_two_classes_leave_nothing_of_is_refused(name, fields, field):
    words = f'objective.{name}.{field}.*nothing to learn.* 2 classes: .*; set {field}=(0|False), '
    with pytest.raises(UserError, match=words) as caught:
        build({name: fields}, (1.0,), num_classes=2)
    assert '\n' not in str(caught.value)
    build({name: fields}, (1.0,), num_classes=3)
    build({name: fields}, (1.0,))  # not known yet
    build({name: fields | {'weight': 0.0}, 'cross_entropy': {}}, num_classes=2)  # dropped
