"""Models, losses and data of the user's own, by their names."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import own_things
import pytest

from configs import common
from kd_jax import data, models, objectives, own
from kd_jax.errors import UserError
from kd_jax.initialization import check_foreign
from kd_jax.models import Output, initial
from kd_jax.models.common import param_count
from kd_jax.networks import Network
from kd_jax.objectives import logits

IMAGE = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 1)), jnp.float32)


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    monkeypatch.setattr(own, '_everything', [True])


def variables_of(model, seed=0):
    plan = initial.Plan(lambda key: model.init_with_output(key, IMAGE, train=False))
    return plan.draw((seed,))


@pytest.mark.parametrize('name', ['Linear', 'Net', 'Bare', 'Nnx', 'make', 'fixed'])
def test_a_module_trains_and_rests_as_one_of_the_zoo(name):
    model = models.build(f'own_things:{name}', 3)
    variables = variables_of(model)
    rest = model.apply(variables, IMAGE, train=False)
    assert isinstance(rest, Output) and rest.logits.shape == (4, 3)
    assert rest.logits.dtype == jnp.float32
    collections = [key for key in variables if key != 'params']
    assert collections == ([] if name == 'Linear' else ['batch_stats'])
    output, changed = model.apply(
        variables, IMAGE, train=True, mutable=collections, rngs={'dropout': jax.random.key(0)}
    )
    assert output.logits.shape == (4, 3) and jax.tree.structure(dict(changed)) == (
        jax.tree.structure({key: variables[key] for key in collections})
    )
    before = {key: variables[key] for key in collections}
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(changed), strict=True):
        assert np.abs(old - new).max() > 0  # running statistics
    if name != 'Linear':
        assert np.abs(output.logits - rest.logits).max() > 1e-3


def test_its_variables_are_called_as_the_module_calls_them_and_depend_on_the_seed():
    ours = variables_of(models.build('own_things:Net', 3))
    theirs = jax.eval_shape(lambda: own_things.Net(3).init(jax.random.key(0), IMAGE))
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, dict(theirs))
    other = variables_of(models.build('own_things:Net', 3), seed=1)
    kernels = [tree['params']['Conv_0']['kernel'] for tree in (ours, other)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1


def test_fields_of_a_module_are_those_of_its_class():
    small, large = (models.build('own_things:Net', 3, hidden=n, width=None) for n in (4, 16))
    assert param_count(variables_of(small)) < param_count(variables_of(large))
    nnx = models.build('own_things:Nnx', 3, hidden=4)
    assert variables_of(nnx)['params']['conv']['kernel'].shape == (3, 3, 1, 4)
    assert variables_of(models.build('own_things:make', 3, wide=True))['params']['Conv_0'][
        'kernel'
    ].shape == (3, 3, 1, 16)


def test_dropout_of_both_kinds_of_modules_follows_the_random_numbers_of_the_step():
    for name, rate in (('Net', {'dropout': 0.5}), ('Nnx', {'rate': 0.5})):
        model = models.build(f'own_things:{name}', 3, **rate)
        variables = variables_of(model)
        first, same, other = (
            model.apply(
                variables, IMAGE, train=True, mutable=['batch_stats'],
                rngs={'dropout': jax.random.key(seed)},
            )[0].logits
            for seed in (0, 0, 1)
        )  # fmt: skip
        np.testing.assert_array_equal(first, same)
        assert np.abs(first - other).max() > 1e-3


def test_the_compute_type_and_the_axis_reach_a_module_that_takes_them():
    model = models.build('own_things:Net', 3).clone(dtype=jnp.bfloat16)
    variables = variables_of(model)
    assert model.apply(variables, IMAGE, train=False).features['stage1'].dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype('float32')}

    def step(image):
        synchronised = model.clone(axis_name='i', dtype=jnp.float32)
        return synchronised.apply(variables, image, train=True, mutable=['batch_stats'])[1]

    shards = jax.vmap(step, axis_name='i')(IMAGE.reshape(2, 2, 8, 8, 1))
    whole = model.clone(dtype=jnp.float32).apply(
        variables, IMAGE, train=True, mutable=['batch_stats']
    )[1]
    mean = whole['batch_stats']['BatchNorm_0']['mean']
    np.testing.assert_allclose(shards['batch_stats']['BatchNorm_0']['mean'][0], mean, atol=1e-6)
    with pytest.raises(UserError, match='^model .own_things:Linear. has no field dtype, so that'):
        variables_of(models.build('own_things:Linear', 3).clone(dtype=jnp.bfloat16))


@pytest.mark.parametrize(
    ('name', 'given', 'sentence'),
    [
        ('own_things:Nets', {}, "unknown model of module own_things 'Nets'; did you mean 'Net'"),
        ('own_thing:Net', {}, "there is no module 'own_thing' in the config's directory, the"),
        ('own things:Net', {}, "is no name of your own; write 'package.module:name', such as"),
        ('own_things.py:Net', {}, "there is no module 'own_things.py'"),
        ('broken_thing:Net', {}, 'cannot be imported: ZeroDivisionError: division by zero; mend'),
        ('own_things:not_callable', {}, 'is int; it must be a class of Flax modules'),
        ('own_things:Margin', {}, None),
        ('own_things:Net', {'hiden': 3}, "unknown field of model 'own_things:Net' 'hiden'; did"),
        ('os:PathLike', {}, 'is a class, but not of flax.linen or flax.nnx modules'),
        ('own_things:Two', {}, r'is called with (image, text); it must be (image), or (image, tr'),
        ('own_things:blind', {}, 'needs student_logits, teacher_logits, _labels; give model.stud'),
        ('own_things:load', {}, 'made dict, which is no Flax module'),
        ('own_things:Answers', {}, 'returned str; return the logits, (logits, {'),
        ('own_things:Answers', {'how': 'triple'}, 'returned tuple of '),
        ('own_things:Answers', {'how': 'mapping'}, 'returned dict; return the logits'),
        ('own_things:Answers', {'how': 'half'}, 'returned logits of shape (2, 3) for 4 images of'),
        ('own_things:Answers', {'how': 'wide'}, 'returned logits of shape (4, 6) for 4 images of'),
        ('own_things:Answers', {'how': 'whole'}, 'returned int32 logits; they must be float'),
        ('own_things:Answers', {'how': 'flat'}, 'the feature stage1 of shape (4, 3); it must be'),
        ('own_things:Answers', {'how': 'pooled'}, 'feature pooled of shape (4, 8, 8, 1); it must'),
    ],
)
def test_what_is_no_model_is_refused_in_one_sentence(name, given, sentence, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'broken_thing.py').write_text('1 / 0\n')
    with pytest.raises(UserError) as caught:
        variables_of(models.build(name, 3, **given))
    assert (sentence or 'Margin') in str(caught.value)


def build(**terms):
    return objectives.build(terms, teacher_weights=(1.0,), num_classes=3)


def values_of(objective, student, teacher, labels):
    batch = {'label': jnp.asarray(labels), 'mask': jnp.ones(len(labels))}
    return objective.apply({}, Output(student, {}), (Output(teacher, {}),), batch)


def test_a_loss_of_ones_own_is_a_term_like_any_other():
    rng = np.random.default_rng(0)
    student, teacher = jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.float32)
    labels = [0, 1, 2, -1]
    objective = build(
        half=common.term('own_things:jsd', beta=0.25, weight=2.0),
        margin={'loss': 'own_things:Margin', 'margin': 0.5},
        blind=common.term('own_things:blind'),
    )
    found = values_of(objective, student, teacher, labels)
    np.testing.assert_allclose(found['half'], own_things.jsd(student, teacher, labels, beta=0.25))
    np.testing.assert_allclose(found['blind'], logits.logit_mse(student, teacher), rtol=1e-6)
    assert found['margin'].shape == (4,)
    masks = objective.masks({'label': jnp.asarray(labels), 'mask': jnp.ones(4)})
    assert masks['half'].tolist() == [1, 1, 1, 0]  # it reads labels
    assert masks['blind'].tolist() == [1, 1, 1, 1]  # its parameter is called `_labels`
    assert objective.hparams().keys() == {
        'objective.half.weight',
        'objective.margin.weight',
        'objective.margin.margin',
        'objective.blind.weight',
    }
    assert common.term('own_things:jsd').to_dict() == {
        'loss': 'own_things:jsd', 'weight': 1.0, 'ramp_epochs': 0.0, 'ramp_from': 0.0,
        'only_where': 'always', 'beta': 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ('name', 'fields', 'sentence'),
    [
        ('mean_of_batch', {}, 'returned shape () for 4 examples; return one value for each, [B]'),
        ('two_only', {}, 'is a function of (student_logits, labels); they must be (student_logit'),
        ('Net', {}, 'is a class, but none of kd_jax.objectives.Loss'),
        ('not_callable', {}, 'is int; it must be a function (student_logits, teacher_logits'),
        ('jsd', {'alpha': 1.0}, "unknown field of objective.mine 'alpha'"),
        ('jsd', {'beta': 'x'}, "objective.mine.beta is 'x'; it must be a number, such as 0.5"),
        ('jsq', {}, "unknown loss of module own_things 'jsq'; did you mean 'jsd'"),
    ],
)
def test_what_is_no_loss_is_refused_in_one_sentence(name, fields, sentence):
    zeros = jnp.zeros((4, 3))
    with pytest.raises(UserError) as caught:
        values_of(build(mine={'loss': f'own_things:{name}'} | fields), zeros, zeros, [0] * 4)
    assert sentence in str(caught.value)


def test_a_feature_that_a_module_does_not_return_is_asked_for_in_one_sentence():
    plain, rich = (
        Output(jnp.zeros((4, 3)), {}),
        Output(jnp.zeros((4, 3)), {'pooled': IMAGE[:, 0, :, 0]}),
    )
    for name, asked in (
        ('rkd', "the student returns no feature 'pooled'"),
        ('at', 'stage1, stage'),
    ):
        with pytest.raises(UserError, match=asked):
            build(mine={'loss': name}).init(
                jax.random.key(0), plain, (rich,), {'label': jnp.zeros(4), 'mask': jnp.ones(4)}
            )


def test_data_of_ones_own_are_a_source():
    settings = common.study().data
    for name in ('load', 'load_asked'):
        settings.source = f'own_things:{name}'
        found = data.load(settings)
        assert found.info.class_names == ('a', 'b', 'c') and found.info.image_shape == (8, 8, 1)
        assert found.info.count == {'train': 54, 'labelled': 54, 'val': 6, 'test': 30}
    settings.name = 'wrong'
    with pytest.raises(UserError, match='has int as train; it must be .image, label., two arrays'):
        data.load(settings)
    for name, sentence in (
        ('jsd', r'a function of \(student_logits, teacher_logits, labels\); it must be one of no'),
        ('fail', 'data source .own_things:fail. failed: FileNotFoundError: nowhere'),
        ('not_callable', 'is int; it must be a function'),
    ):
        settings.source = f'own_things:{name}'
        with pytest.raises(UserError, match=sentence):
            data.load(settings)
    settings.source = 'dgits'
    with pytest.raises(UserError, match="unknown value of data.source 'dgits'; did you mean"):
        data.load(settings)


def test_what_a_workdir_names_is_imported_only_with_trust(monkeypatch):
    monkeypatch.setattr(own, '_everything', [False])
    monkeypatch.setattr(own, '_trusted', set())
    with pytest.raises(UserError, match='is code outside of kd_jax, which a workdir names; if you'):
        models.build('own_things:Net', 3)
    own.trust(['own_things:Net'])
    assert models.build('own_things:Net', 3)
    with pytest.raises(UserError, match='say --trust'):
        models.build('own_things:Linear', 3)


def test_what_is_kept_in_this_process_is_found_by_its_name(monkeypatch):
    monkeypatch.setattr(own, '_here', {})
    own.keep('__main__:mine', own_things.Net)
    assert own.load('__main__:mine', 'model') is own_things.Net
    with pytest.raises(UserError, match='was made in a notebook or a script, which is gone; put'):
        own.load('__main__:other', 'model')


@pytest.mark.parametrize(
    ('name', 'freeze', 'axis_name', 'told'),
    [
        ('Bare', (), 'batch', ['has BatchNorm but no field axis_name: each device normalises']),
        ('Net', (), 'batch', []),
        ('Bare', (), None, []),
        ('Linear', ('Dense',), 'batch', []),
        ('Net', ('Conv',), None, ['has BatchNorm that optim.freeze and optim.train cannot stop']),
    ],
)
def test_what_a_module_lacks_is_told(name, freeze, axis_name, told, capsys):
    network = Network(models.build(f'own_things:{name}', 3), (0.0,), (1.0,))
    plan = initial.Plan(lambda key: network.model.init_with_output(key, IMAGE, train=False))
    step = SimpleNamespace(students={'student': network})
    check_foreign(step, {'student': plan}, freeze, axis_name)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(told) and all(map(str.__contains__, lines, told))
