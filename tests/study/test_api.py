"""The package from Python: `distill`, `run_study`, and the step for a loop of one's own."""

import json
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import own_things
import pytest

import kd_jax as kd
from kd_jax import given, own
from kd_jax.errors import UserError
from kd_jax.objectives import logits
from kd_jax.workdir import RunDirectory

QUICK = {'epochs': 2, 'batch_size': 20, 'parallel': 'jit'}
SMALL = {'name': 'cnn', 'width': 0.1}


class Here(nn.Module):
    """With a field that no record can hold."""

    num_classes: int
    activation: object = nn.relu

    @nn.compact
    def __call__(self, image):
        return nn.Dense(self.num_classes)(self.activation(image.reshape(len(image), -1)))


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """What a call keeps or trusts ends with it, and no process-wide setting changes."""
    monkeypatch.setattr(own, '_here', {})
    monkeypatch.setattr(own, '_trusted', set())
    monkeypatch.setattr('kd_jax.runtime.prepare', lambda **_: None)


def distill(teacher, student, data=None, objective=None, **more):
    options = {'epochs': 2, 'batch_size': 20, 'alone': False} | more
    return kd.distill(teacher, student, data or own_things.load(), objective, **options)


def test_a_notebook_gets_the_table_as_rows_and_the_models(tmp_path):
    """Own arrays, module and loss; the same call again trains nothing."""
    objective = {'cross_entropy': 0.5, 'kl': {'tau': 2.0}, 'mine': own_things.jsd}
    asked = SMALL, own_things.Net(3, hidden=4), None, objective
    first = distill(*asked, alone=True, seeds=(0, 1), workdir=tmp_path / 'w')
    assert [row['run'] for row in first.table] == ['teacher', 'alone', 'student']
    assert {row['seeds'] for row in first.table} == {2}
    assert [(row['run'], row['seed']) for row in first.runs][-2:] == [
        ('student', 0),
        ('student', 1),
    ]
    by_seed = [100 * row['test top1'] for row in first.runs if row['run'] == 'student']
    assert first.table[2]['top-1 %'] == pytest.approx(np.mean(by_seed))
    assert first.table[2]['top-1 % std'] == pytest.approx(np.std(by_seed, ddof=1))
    (gain,) = first.gains
    assert gain['against'] == 'alone' and gain['n'] == 2
    assert gain['top-1 points'] == pytest.approx(np.mean(by_seed) - first.table[1]['top-1 %'])
    assert '| student | own_things:Net |' in str(first) == first._repr_markdown_()
    config = json.loads((tmp_path / 'w/student/seed0/config.json').read_text())['config']
    assert config['model']['hidden'] == 4 and config['objective']['kl']['tau'] == 2.0
    assert config['objective']['mine']['loss'] == 'own_things:jsd'

    image, label = own_things.load()['test']
    for seed, right in enumerate(by_seed):
        found = first.model(seed=seed).probabilities(image, batch_size=7)
        np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
        assert 100 * (found.argmax(-1) == label).mean() == pytest.approx(right)
    again = distill(*asked, alone=True, seeds=(0, 1), workdir=tmp_path / 'w')
    assert again.runs == first.runs
    with pytest.raises(UserError, match="unknown run 'pupil'"):
        first.model('pupil')
    other = own_things.load()
    other['test'] = other['test'][0], 2 - other['test'][1]
    with pytest.raises(UserError, match=r'data.npz holds other data than these; choose another wo'):
        distill(SMALL, own_things.Net(3), other, workdir=tmp_path / 'w')
    with pytest.raises(UserError, match='holds a run with another config .*hidden'):
        distill(
            *asked[:1], own_things.Net(3, hidden=5), *asked[2:], alone=True, workdir=tmp_path / 'w'
        )


def test_whatever_predicts_is_a_teacher(tmp_path):
    """A function, (module, variables), and a workdir; the student is a module of this file that no
    record can hold.
    """
    module, variables = own_things.with_variables
    teachers = {
        'function': own_things.on_host,
        'module': kd.Teacher(module, variables, mean=(0.0,), std=(1 / 255,)),
        'workdir': str(tmp_path / 'function/student'),
    }
    for name, teacher in teachers.items():
        found = distill(teacher, Here(3, nn.gelu), workdir=tmp_path / name)
        rows = {row['run']: row for row in found.table}
        assert rows['student']['agreement %'] is not None
        assert ('teacher' in rows) == (name != 'workdir')
    assert rows['student']['model'] == '__main__:Here'
    config = RunDirectory(tmp_path / 'workdir/student/seed0').info()['config']
    assert config['teachers'] == [str(tmp_path / 'function/student')]


def test_ctrl_c_saves_and_the_same_call_goes_on(tmp_path, monkeypatch):
    asked = SMALL, SMALL | {'width': 0.05}, None, None
    whole = distill(*asked, of_teacher={'epochs': 1}, workdir=tmp_path / 'whole')
    assert [row['steps'] for row in whole.runs] == [3, 5]

    say = kd.data.load

    def interrupted(config):
        signal.raise_signal(signal.SIGINT)
        return say(config)

    monkeypatch.setattr('kd_jax.data.load', interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        distill(*asked, of_teacher={'epochs': 1}, workdir=tmp_path / 'cut')
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    monkeypatch.setattr('kd_jax.runtime.prepare', lambda **_: None)
    cut = distill(*asked, of_teacher={'epochs': 1}, workdir=tmp_path / 'cut')
    assert [row['test nll'] for row in cut.runs] == [row['test nll'] for row in whole.runs]


def test_alone_is_trained_where_a_method_starts_from_it(tmp_path, monkeypatch):
    studies = []
    monkeypatch.setattr('kd_jax.api.run_study', lambda study, _: studies.append(study))
    distill(SMALL, SMALL, 'digits', 'born_again', workdir=tmp_path)
    distill(SMALL, SMALL, 'digits', 'kl', workdir=tmp_path)
    assert ['alone' in study.runs for study in studies] == [True, False]


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        (
            {'teacher': 'resnet2'},
            "unknown teacher 'resnet2'; did you mean.*no directory or",
        ),
        ({'teacher': 3}, 'the teacher is 3; it must be the name of a model, a workdir, a file'),
        ({'teacher': (own_things.Net(3), None)}, 'the teacher Net has no variables; give kd.Teach'),
        ({'teacher': kd.Teacher(own_things.on_host, model='cnn')}, "has model='cnn', which is for"),
        ({'teacher': own_things.with_variables}, 'teacher.mean and .std are missing: give those'),
        ({'teacher': 'nowhere.pth'}, 'nowhere.pth'),
        ({'student': 3}, 'the student is 3; it must be the name of a model, a mapping of its name'),
        ({'student': 'cn'}, "unknown model 'cn'; did you mean 'cnn'"),
        ({'student': {'width': 1.0}}, 'has no name, such as'),
        ({'data': 3}, 'the data are 3; they must be '),
        ({'data': 'dgits'}, "unknown data 'dgits'; did you mean 'digits'?.* no .npz file or direc"),
        ({'data': {'train': 3}}, 'data is a dict with train; it must be '),
        ({'objective': 'dk'}, "unknown method 'dk'; did you mean 'dkd'"),
        ({'objective': 3}, 'the objective is 3; it must be the name of a method, terms such as'),
        ({'objective': {'kl': 'x'}}, "objective 'kl' is 'x'; it must be a weight, a mapping of"),
        ({'objective': {'kl': {'tua': 1.0}}}, "unknown field of runs.student.objective.kl 'tua'"),
        ({'batchsize': 3}, "unknown argument 'batchsize'; did you mean 'batch_size'"),
        ({'optim': {'lr': 0.1}}, "unknown field of optim 'lr'"),
        ({'optim': 0.1}, 'optim is 0.1; it must be a mapping of its fields'),
        ({'of_teacher': {'epoch': 3}}, "unknown argument 'epoch'; did you mean 'epochs'"),
        (
            {'of_teacher': {'epochs': 3}, 'teacher': own_things.on_host},
            'of_teacher is .*, but the teacher is not trained here',
        ),
        ({'epochs': 'two'}, "epochs is 'two'; it must be a number, such as 30"),
        ({'learning_rate': 0.1}, "learning_rate is a field of optim; write optim={'learning_rate'"),
        ({'teacher': lambda x: np.zeros((len(x), 2))}, r'logits of shape \(2, 2\) for 2 images'),
        ({'epochs': -1}, 'epochs is -1.0; it must be greater than 0'),
        (
            {'objective': 'assistant', 'teacher': own_things.on_host},
            'the method assistant trains models of the teacher, which is not a model that',
        ),
    ],
)
def test_mistakes_are_one_sentence(changes, sentence, tmp_path):
    asked = {'teacher': SMALL, 'student': SMALL, 'data': own_things.load()} | changes
    with pytest.raises(UserError, match=sentence):
        kd.distill(**{'epochs': 1} | asked, workdir=tmp_path)


def test_two_things_of_one_name_are_refused():
    names, (one, other) = given.Names(), (lambda x: x, lambda x: -x)
    assert names.keep('loss', one) == names.keep('loss', one) == '__main__:loss'
    with pytest.raises(UserError, match="two different things called 'loss'; give one of them ano"):
        names.keep('loss', other)
    assert given.Names().keep('loss', other)  # of another call


def test_the_step_for_a_loop_of_ones_own_is_the_gradient_of_its_loss():
    image, label = own_things.load()['train']
    batch = {'image': np.float32(image[:8, ..., None]) / 255, 'label': label[:8]}
    student = own_things.Linear(3)
    step = kd.make_train_step(
        student,
        own_things.with_variables,
        {'cross_entropy': {}, 'kl': {'tau': 2.0}},
        optax.sgd(0.1),
    )
    state = step.init(0, batch)
    start = step.variables(state)

    def loss(variables):
        module, theirs = own_things.with_variables
        mine, taught = (
            student.apply(variables, batch['image']),
            module.apply(theirs, batch['image']),
        )
        terms = logits.cross_entropy(mine, batch['label']), logits.kl(mine, taught, 2.0)
        return sum(term.mean() for term in terms)

    value, gradient = jax.value_and_grad(loss)(start)
    wanted = jax.tree.map(lambda x, g: x - 0.1 * g, start, gradient)
    state, metrics = step(state, batch)
    np.testing.assert_allclose(metrics['loss'], value, rtol=1e-5)
    for x, y in zip(*map(jax.tree.leaves, (step.variables(state), wanted)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    for _ in range(60):
        state, metrics = step(state, batch)
    assert metrics['loss'] < 0.7 * value

    function = kd.make_train_step(own_things.Net(3), own_things.bright, optimizer=optax.sgd(0.1))
    state = function.init(0, batch)
    before = jax.tree.map(np.array, step_statistics(function, state))
    state, metrics = function(state, batch)
    assert np.isfinite(metrics['loss'])
    after = step_statistics(function, state)
    assert any(np.abs(x - y).max() > 0 for x, y in zip(before, after, strict=True))


def step_statistics(step, state):
    return jax.tree.leaves(step.variables(state)['batch_stats'])


def test_mistakes_in_a_loop_of_ones_own_are_one_sentence():
    image = jnp.zeros((2, 8, 8, 1))
    step = kd.make_train_step(own_things.Linear(3), own_things.bright)
    with pytest.raises(UserError, match='a batch has image; give image and label'):
        step.init(0, {'image': image})
    with pytest.raises(UserError, match=r'of shape \(2, 8, 8, 1\) and labels of shape \(3,\)'):
        step.init(0, {'image': image, 'label': jnp.zeros(3, int)})
    with pytest.raises(UserError, match='the model Bare does not tell its number of classes; give'):
        kd.make_train_step(own_things.Bare(), own_things.bright)
    with pytest.raises(UserError, match='the teacher is NoneType; it must be a function of images'):
        kd.make_train_step(own_things.Linear(3), None)
    with pytest.raises(UserError, match='a batch has uint8 images; give them as the models see'):
        step.init(0, {'image': image.astype(np.uint8), 'label': jnp.zeros(2, int)})
    with pytest.raises(UserError, match='3 is no module of flax.linen; give one'):
        kd.make_train_step(3, own_things.bright)
    crd = kd.make_train_step(own_things.Net(3), kd_teacher, {'crd': {}})
    with pytest.raises(UserError, match='needs .* of the whole data set; use kd_jax.distill'):
        crd.init(0, {'image': image, 'label': jnp.zeros(2, int)})


def kd_teacher(image):
    return own_things.bright(image), {'pooled': image.mean((1, 2))}
