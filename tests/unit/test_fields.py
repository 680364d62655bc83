"""Fields with a range: what they allow and say, and that every field a user can set has one."""

import dataclasses
import math
from numbers import Real

import pytest

from configs import common
from kd_jax import config, config_check, fields, models, objectives, trained
from kd_jax.data import DatasetInfo
from kd_jax.errors import UserError
from kd_jax.fields import check, choice, field, flag, names, number, optional, several, text


@dataclasses.dataclass(frozen=True)
class Example:
    tau: float = number(4.0, above=0, sweep=True)
    weight: float = number(1.0, at_least=0, sweep=True)
    momentum: float = number(0.9, at_least=0, below=1)
    factor: float = number(0.1, above=0, at_most=1)
    share: float = number(0.5, at_least=0, at_most=1, words='between 0 and 1')
    least: float = number(0.0, at_most=3)
    epochs: int = number(10, at_least=1)
    size: int = number(3, above=2)
    width: float | None = number(None, above=0)
    stage: int | None = number(None, at_least=1, example=2)
    kind: str = choice('sgd', 'adam')
    nesterov: bool = flag(False)
    path: str = text()
    even: int = field(2, lambda value: value % 2 == 0, 'an even number')
    steps: tuple[float, ...] = several(
        (), lambda value: fields.is_number(value) and value > 0, 'numbers greater than 0'
    )
    freeze: tuple[str, ...] = names((), "regular expressions, such as ('stem',)")
    seed: int | None = optional(int)
    aux: bool | None = optional(bool)
    program: str = 'set by the program'


def test_defaults_and_sweeps_are_those_of_the_fields_with_a_limit():
    assert 'program' not in fields.own(Example) and 'tau' not in fields.own(Example, but=('tau',))
    assert fields.defaults(Example) == {
        k: v for k, v in dataclasses.asdict(Example()).items() if k != 'program'
    }
    assert fields.swept(Example) == ('tau', 'weight')
    assert (
        check(Example, {}, 'x')
        == check(Example, dict.fromkeys(fields.own(Example)), 'x')
        == fields.defaults(Example)
    )


@pytest.mark.parametrize(
    ('given', 'value'),
    [
        ({'tau': 2}, 2.0),
        ({'weight': 0}, 0.0),
        ({'momentum': 0.0}, 0.0),
        ({'factor': 1}, 1.0),
        ({'least': -5}, -5.0),
        ({'epochs': 1}, 1),
        ({'width': 2}, 2.0),
        ({'stage': 3}, 3),
        ({'kind': 'adam'}, 'adam'),
        ({'nesterov': True}, True),
        ({'path': ''}, ''),
        ({'even': 0}, 0),
        ({'steps': [1, 2.5]}, (1, 2.5)),
        ({'steps': ()}, ()),
        ({'freeze': ['stem']}, ('stem',)),
        ({'seed': 0}, 0),
        ({'aux': False}, False),
    ],
    ids=str,
)
def test_what_is_allowed_comes_in_the_type_of_the_field(given, value):
    ((name, _),) = given.items()
    found = check(Example, given, 'x')
    assert found == fields.defaults(Example) | {name: value} and type(found[name]) is type(value)
    assert Example(**found) == dataclasses.replace(Example(), **{name: value})


@pytest.mark.parametrize(
    ('name', 'value', 'sentence'),
    [
        ('tau', 0, 'run.tau is 0.0; it must be a finite number greater than 0'),
        ('tau', math.inf, 'run.tau is inf; it must be a finite number greater than 0'),
        ('tau', math.nan, 'run.tau is nan; it must be a finite number greater than 0'),
        ('tau', 'warm', "run.tau is 'warm'; it must be a number, such as 4.0"),
        ('tau', True, 'run.tau is True; it must be a number, such as 4.0'),
        ('weight', -1.0, 'run.weight is -1.0; it must be a finite number, 0 or more'),
        ('momentum', 1.0, 'run.momentum is 1.0; it must be at least 0 and less than 1'),
        ('factor', 0.0, 'run.factor is 0.0; it must be greater than 0 and at most 1'),
        ('share', 1.5, 'run.share is 1.5; it must be between 0 and 1'),
        ('least', 4.0, 'run.least is 4.0; it must be at most 3'),
        ('least', -math.inf, 'run.least is -inf; it must be finite, and at most 3'),
        ('epochs', 0, 'run.epochs is 0; it must be a whole number, 1 or more'),
        ('epochs', 1.5, 'run.epochs is 1.5; it must be a whole number, such as 10'),
        ('epochs', True, 'run.epochs is True; it must be a whole number, such as 10'),
        ('size', 2, 'run.size is 2; it must be a whole number greater than 2'),
        ('width', 0.0, 'run.width is 0.0; it must be a finite number greater than 0'),
        ('width', 'wide', "run.width is 'wide'; it must be a number, such as 1.0"),
        ('stage', 0.5, 'run.stage is 0.5; it must be a whole number, such as 2'),
        ('kind', 'sdg', "unknown value of run.kind 'sdg'; did you mean 'sgd'? known: adam, sgd"),
        ('kind', 3, "run.kind is 3; it must be 'sgd' or 'adam'"),
        ('nesterov', 1, 'run.nesterov is 1; it must be True or False'),
        ('path', 3, 'run.path is 3; it must be text'),
        ('even', 3, 'run.even is 3; it must be an even number'),
        ('steps', 3.0, 'run.steps is 3.0; it must be a list of numbers greater than 0'),
        ('steps', (1.0, -2.0), 'run.steps is (1.0, -2.0); it must be numbers greater than 0'),
        ('steps', ('a',), "run.steps is ('a',); it must be numbers greater than 0"),
        (
            'freeze',
            'stem',
            "run.freeze is 'stem'; it must be a list of regular expressions, such as ('stem',)",
        ),
        ('freeze', ('',), "run.freeze is ('',); it must be regular expressions, such as ('stem',)"),
        ('seed', 'zero', "run.seed is 'zero'; it must be a whole number, such as 0"),
        ('aux', 1, 'run.aux is 1; it must be True or False'),
        (
            'tua',
            1.0,
            "unknown field of run 'tua'; did you mean 'tau'? known: "
            + ', '.join(sorted(fields.own(Example))),
        ),
        (
            'program',
            'x',
            "unknown field of run 'program'; known: " + ', '.join(sorted(fields.own(Example))),
        ),
    ],
)
def test_what_is_not_allowed_is_one_sentence(name, value, sentence):
    with pytest.raises(UserError) as caught:
        check(Example, {name: value}, 'run')
    assert str(caught.value) == sentence


def test_what_is_no_mapping_is_one_sentence_and_the_kind_of_name_can_be_said():
    with pytest.raises(
        UserError, match=r'^run is 3; it must be a mapping of its fields: tau, weight, '
    ):
        check(Example, 3, 'run')
    with pytest.raises(UserError, match=r"^unknown setting of run 'tua'; did you mean 'tau'"):
        check(Example, {'tua': 1}, 'run', kind='setting')


def test_an_unknown_bound_reads_as_a_finite_number():
    @dataclasses.dataclass
    class Free:
        x: float = number(0.0)

    assert check(Free, {'x': -1e30}, 'run') == {'x': -1e30}
    with pytest.raises(UserError, match=r'^run.x is -1e\+300; it must be at most 1e\+30 in size'):
        check(Free, {'x': -1e300}, 'run')
    with pytest.raises(UserError, match=r'^run.x is inf; it must be a finite number$'):
        check(Free, {'x': math.inf}, 'run')


# The tables

PROGRAM = {'axis_name', 'fast', 'parent', 'name'}  # of a loss
# Of a model: set by the program, or what distinguishes variants of a family from each other.
OF_MODELS = {'num_classes', 'frozen', 'fast', 'axis_name', 'dtype', 'parent', 'name'} | {
    'blocks', 'bottleneck', 'norm', 'small', 'small_images', 'stage_sizes', 'stages', 'stem',
    'stem_kernel', 'strides', 'top', 'top_features', 'widths',
}  # fmt: skip
FAMILIES = {make.func for make in models.MODELS.values()}


def unbounded(own):
    """The number fields, and those of several numbers, that allow a number
    however large and however small.
    """

    def numbers(f):
        value = f.metadata['example'] if f.default is None else f.default
        if isinstance(value, tuple):
            return lambda x: (x,)
        return (lambda x: x) if isinstance(value, Real) and not isinstance(value, bool) else None

    def refuses(f, value):
        return not f.metadata['limit'].allowed(value)

    as_value = {name: numbers(f) for name, f in own.items()}
    return [
        name
        for name, f in own.items()
        if as_value[name] and not any(refuses(f, as_value[name](x)) for x in (-1e300, -1, 0, 1e300))
    ]


@pytest.mark.parametrize('name', objectives.OBJECTIVES)
def test_every_field_of_a_loss_has_a_limit_and_every_number_a_bound(name):
    loss = objectives.OBJECTIVES[name]
    own = fields.own(loss)
    assert {f.name for f in dataclasses.fields(loss)} == own.keys() | PROGRAM
    assert unbounded(own) == []
    assert (
        check(loss, {}, 'x') == check(loss, fields.defaults(loss), 'x') == objectives.defaults(name)
    )


@pytest.mark.parametrize('family', sorted(FAMILIES, key=lambda family: family.__name__))
def test_every_field_of_a_model_has_a_limit_and_every_number_a_bound(family):
    own = fields.own(family)
    assert {f.name for f in dataclasses.fields(family)} <= own.keys() | OF_MODELS
    assert not own.keys() & OF_MODELS
    assert set(common.run(common.study(), '').model) & OF_MODELS == {'name'}  # that of the model
    assert unbounded(own) == []
    assert check(family, {}, 'x') == check(family, fields.defaults(family), 'x')


@pytest.mark.parametrize('name', models.MODELS)
def test_the_own_values_of_a_variant_are_within_its_limits(name):
    make = models.MODELS[name]
    given = {
        field: value for field, value in make.keywords.items() if field in fields.own(make.func)
    }
    assert check(make.func, given, 'x').items() >= given.items()


def test_the_tests_of_the_tables_see_a_missing_bound():
    @dataclasses.dataclass
    class Free:
        x: float = number(0.0)
        n: int = field(1, lambda value: True, 'anything')
        many: tuple[float, ...] = several((), lambda value: True, 'anything')
        low: float = number(1.0, at_least=0)
        some: tuple[float, ...] = several((), lambda value: value > 0, 'numbers')
        flag: bool = flag(True)

    assert unbounded(fields.own(Free)) == ['x', 'n', 'many']


def test_a_run_may_set_any_field_that_the_family_of_its_model_has():
    study = config.study()
    run = config.run(study, 'wrn_16_1')
    run.model.block_dropout = 0.3
    config_check.check_run('own', run)
    info = DatasetInfo('random', 3, (), (32, 32, 3), (0.5,) * 3, (0.5,) * 3)
    assert trained.build_network(run.model, info, 'float32').model.block_dropout == 0.3
    run.model.block_drop = 0.3
    with pytest.raises(UserError, match="model 'wrn_16_1' has no field 'block_drop'"):
        trained.build_network(run.model, info, 'float32')


@pytest.mark.parametrize(
    'record', [config.Run, config.Shared, config.Study, config.Imported, *config.GROUPS.values()]
)
def test_every_field_of_a_study_has_a_limit_and_a_default_within_it(record):
    own = fields.own(record)
    assert {f.name for f in dataclasses.fields(record)} == set(own)
    for name, of in own.items():
        assert of.metadata['limit'].words, name
        assert of.default is None or of.metadata['limit'].allowed(of.default), name


def test_the_fields_of_a_study_and_of_a_run_are_those_of_the_records():
    study = config.study()
    assert set(study) == {
        *fields.own(config.Study),
        *fields.own(config.Shared),
        'data',
        'augment',
        'teachers',
        'runs',
    }
    run = config.run(study, 'cnn')
    assert set(run) == {
        *fields.own(config.Run),
        *fields.own(config.Shared),
        *config.GROUPS,
        'objective',
    }
    for group, record in config.GROUPS.items():
        assert set(run[group]) == set(fields.own(record))
    run.typo = 1
    with pytest.raises(UserError, match="unknown field of runs.own 'typo'"):
        config_check.check_run('own', run)
    study.typo = 1
    with pytest.raises(UserError, match="unknown field of the study 'typo'"):
        config_check.check_study(study)


@pytest.mark.parametrize(
    ('path', 'value', 'words'),
    [
        ('teachers', None, 'runs.own.teachers is None; it must be names'),
        ('epochs', None, 'runs.own.epochs is None; it must be greater than 0'),
        ('model', None, 'runs.own.model is None; it must be a mapping of its fields'),
        ('objective', 'kl', "runs.own.objective is 'kl'; it must be a mapping of its fields"),
        ('objective.kl', 0.9, 'runs.own.objective.kl is 0.9; it must be a mapping of its fields'),
        (
            'optim.learning_rate',
            None,
            'runs.own.optim.learning_rate is None; it must be a finite number greater than 0',
        ),
        ('augment.crop', None, 'runs.own.augment.crop is None; it must be 0'),
    ],
)
def test_what_is_no_value_is_one_sentence(path, value, words):
    run = config.run(config.study(), 'cnn', config.distillation()).copy_and_resolve_references()
    *groups, name = path.split('.')
    node = run
    for group in groups:
        node = node[group]
    with node.ignore_type():
        node[name] = value
    with pytest.raises(UserError, match=words):
        config_check.check_run('own', run)


def test_what_the_program_sets_is_no_field_of_a_model():
    info = DatasetInfo('random', 3, (), (32, 32, 3), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UserError, match='model.num_classes is 5; it is set by the program'):
        trained.build_network({'name': 'cnn', 'num_classes': 5}, info, 'float32')


def test_a_sentence_about_a_huge_value_begins_and_ends_as_it_should():
    with pytest.raises(UserError) as caught:
        raise UserError(f'teachers is {list(range(10**5))}; it must be names')
    told = str(caught.value)
    assert len(told) < 1500 and told.startswith('teachers is [0, 1,')
    assert ' ... ' in told and told.endswith('99999]; it must be names')
