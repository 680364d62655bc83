"""PyTorch weights in a few models of the zoo: complete both ways, as a run that teaches, and the
command. All models are in zoo/.
"""

import json
import math
import subprocess
from pathlib import Path

import commands
import flax
import jax
import numpy as np
import pytest
import torch_files
from helpers import environment
from model_checks import assert_tensors_are_found
from model_facts import EXPECTED
from model_reference import Reference
from refusals import refused_here
from torch_files import cifar_resnet

from kd_jax import models, pretrained, trained
from kd_jax.errors import UserError
from kd_jax.pretrained import __main__ as command
from kd_jax.workdir import RunDirectory, find_run

# Weights that fit to no model are compared with all of the table: here with these.
ALL = models.MODELS
FEW = ('cnn', 'resnet8', 'resnet14', 'resnet18', 'resnet20', 'wrn_16_1')
PARAMS = EXPECTED['resnet8'].params - 93 * 65  # of resnet8 with 7 instead of 100 classes
CIFAR = {'mean': (0.5071, 0.4867, 0.4408), 'std': (0.2675, 0.2565, 0.2761)}
CIFAR_FLAGS = ('--mean=0.5071,0.4867,0.4408', '--std=0.2675,0.2565,0.2761')


def save(path, tensors):
    path.write_bytes(torch_files.state_dict(tensors))
    return path


def refused(path, model, *parts):
    return refused_here(lambda: pretrained.load(path, model), says=parts)


@pytest.fixture(autouse=True)
def few_models(monkeypatch):
    monkeypatch.setattr(models, 'MODELS', {name: ALL[name] for name in FEW})


@pytest.fixture(scope='module')
def state():
    return cifar_resnet(1, 7)


@pytest.fixture
def file(tmp_path, state):
    return save(tmp_path / 'resnet8.pth', state)


# --- loading


def test_every_value_comes_to_its_place(file, state):
    imported = pretrained.load(file, {'name': 'resnet8', 'width': None})
    assert (imported.model, imported.num_classes, imported.channels) == ({'name': 'resnet8'}, 7, 3)
    assert imported.path == str(file)
    sha = subprocess.run(
        ['sha256sum', file], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert imported.checksum == sha
    flat = flax.traverse_util.flatten_dict(imported.variables, sep='/')
    assert all(x.dtype == np.float32 and x.flags.c_contiguous for x in flat.values())
    assert sum(x.size for x in flat.values()) == sum(
        x.size for x in state.values() if x.dtype == np.float32
    )
    names = {
        'params/stem/conv/kernel': 'conv1.weight',
        'params/stage1_block1/conv2/norm/scale': 'layer1.0.bn2.weight',
        'params/stage1_block1/conv2/norm/bias': 'layer1.0.bn2.bias',
        'batch_stats/stage3_block1/conv1/norm/mean': 'layer3.0.bn1.running_mean',
        'batch_stats/stage3_block1/shortcut/norm/var': 'layer3.0.downsample.1.running_var',
        'params/stage2_block1/shortcut/conv/kernel': 'layer2.0.downsample.0.weight',
        'params/head/kernel': 'fc.weight',
        'params/head/bias': 'fc.bias',
    }
    for ours, theirs in names.items():
        x = state[theirs]
        x = np.einsum('oihw->hwio', x) if x.ndim == 4 else x.T
        np.testing.assert_array_equal(flat[ours], x, err_msg=ours)


def test_as_a_teacher_it_answers_as_the_structure_says(file, tmp_path):
    imported = pretrained.load(file, {'name': 'resnet8'})
    directory = RunDirectory(tmp_path / 'runs/teacher/seed0')
    assert pretrained.make_run(directory, 'teacher', imported, image_shape=(32, 32, 3), **CIFAR)
    teacher = trained.load(find_run(tmp_path / 'runs/teacher', seed=3))
    same = jax.tree.map(np.array_equal, dict(teacher.variables), imported.variables)
    assert all(jax.tree.leaves(same))
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3))
    logits = teacher.network.predict(teacher.variables, np.float32(pixels)).logits
    images = (pixels / 255 - np.array(CIFAR['mean'])) / np.array(CIFAR['std'])
    expected = Reference(imported.variables).resnet(images, 1)['logits']
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())
    info = teacher.info
    assert (info.num_classes, info.class_names, info.image_shape) == (
        7,
        tuple('0123456'),
        (32, 32, 3),
    )
    assert teacher.learning_rate is None
    result = directory.result()
    assert (result['model'], result['params'], result['test']) == ('resnet8', PARAMS, None)


def test_half_precision_becomes_float32_exactly(tmp_path, state):
    half = {name: x.astype(np.float16) if x.dtype == np.float32 else x for name, x in state.items()}
    imported = pretrained.load(save(tmp_path / 'x.pth', half), {'name': 'resnet8'})
    kernel = imported.variables['params']['head']['kernel']
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, state['fc.weight'].astype(np.float16).T)


def test_overrides_change_what_is_expected(tmp_path):
    path = save(tmp_path / 'x.pth', cifar_resnet(2, 10))
    imported = pretrained.load(path, {'name': 'resnet8', 'depth': 2.0})
    assert imported.model == {'name': 'resnet8', 'depth': 2.0}
    assert 'stage3_block2' in imported.variables['params']
    message = refused(
        path,
        {'name': 'resnet14', 'width': 0.5},
        "weights of 'resnet14' with width=0.5",
        'of another shape',
    )
    assert message.endswith("these are the weights of 'resnet14' without overrides")


def test_the_file_decides_about_the_channels_of_the_images(tmp_path):
    path = save(tmp_path / 'grey.pth', cifar_resnet(1, 10, channels=1))
    imported = pretrained.load(path, {'name': 'resnet8'})
    assert imported.channels == 1 and imported.variables['params']['stem']['conv'][
        'kernel'
    ].shape == (3, 3, 1, 16)
    directory = RunDirectory(tmp_path / 'grey/seed0')
    pretrained.make_run(
        directory, 'grey', imported, image_shape=(28, 28, 1), mean=(0.5,), std=(0.25,)
    )
    grey = trained.load(directory)
    assert grey.network.predict(
        grey.variables, np.zeros((2, 28, 28, 1), np.float32)
    ).logits.shape == (2, 10)


# --- what does not fit


def test_what_is_missing_left_over_or_of_another_shape_is_listed(tmp_path, state):
    changed = dict(state)
    del changed['layer2.0.bn1.running_var'], changed['conv1.weight']
    changed['layer4.0.conv1.weight'] = np.ones((2, 2, 3, 3), np.float32)
    changed['bn1.weight'] = np.ones(17, np.float32)
    message = refused(
        save(tmp_path / 'x.pth', changed),
        {'name': 'resnet8'},
        "does not hold the weights of 'resnet8'",
    )
    assert (
        '2 missing: ' in message
        and 'layer2.0.bn1.running_var' in message
        and 'conv1.weight' in message
    )
    assert '1 left over: layer4.0.conv1.weight;' in message
    assert '1 of another shape: bn1.weight is (17,), should be (16,);' in message
    assert message.endswith('no model of the zoo has exactly these tensors')


def test_a_head_that_is_missing_or_has_another_bias(tmp_path, state):
    changed = dict(state)
    del changed['fc.weight']
    refused(
        save(tmp_path / 'x.pth', changed),
        {'name': 'resnet8'},
        "weights of 'resnet8': 1 missing: fc.weight; no model",
    )
    changed = state | {'fc.bias': np.ones(8, np.float32)}
    refused(
        save(tmp_path / 'x.pth', changed), {'name': 'resnet8'}, 'fc.bias is (8,), should be (7,)'
    )
    changed = state | {'conv1.weight': np.ones(3, np.float32)}
    refused(
        save(tmp_path / 'x.pth', changed),
        {'name': 'resnet8'},
        'conv1.weight is (3,), should be (16, ?, 3, 3)',
    )
    changed = state | {'fc.weight': np.array(1.0, np.float32)}
    refused(
        save(tmp_path / 'x.pth', changed), {'name': 'resnet8'}, 'fc.weight is (), should be (7, 64)'
    )


def test_strange_names_do_not_break_the_sentence(tmp_path, state):
    one = np.ones(1, np.float32)
    # resnet8 has no auxiliary heads that may be dropped
    strange = {'aux1.weight': one, 'two\nlines': one, 'x' * 5000: one}
    message = refused(
        save(tmp_path / 'x.pth', state | strange),
        {'name': 'resnet8'},
        "3 left over: aux1.weight, 'two\\nlines', ",
    )
    assert len(message) < 1000


def test_long_lists_are_cut_and_counted(tmp_path):
    path = save(tmp_path / 'x.pth', cifar_resnet(3, 10))
    message = refused(path, {'name': 'resnet8'}, "these are the weights of 'resnet20'")
    left = 2 * 3 * 10  # two more blocks in each of three stages, with ten tensors
    assert f'{left} left over: layer1.1.conv1.weight, ' in message
    assert f' and {left - 12} more; ' in message
    assert message.count('layer') == 12


def test_the_model_whose_weights_they_are_is_named_also_of_another_family(tmp_path):
    path = save(tmp_path / 'x.pth', cifar_resnet(1, 10))
    refused(path, {'name': 'wrn_16_1'}, "these are the weights of 'resnet8'")


def test_what_cannot_be_imported(file, tmp_path):
    refused(file, {'name': 'cnn'}, "no PyTorch form of 'cnn'", 'resnet18')
    refused(file, {'name': 'resnet9'}, "unknown model 'resnet9'", 'did you mean')
    refused(file, {'name': 'vgg16'}, "'vgg16' has several forms", 'imagenet_vgg16_bn')
    refused(file, {'name': 'resnet8', 'adapter': 16}, 'no tensors for adapter=16', 'without it')
    refused(file, {'name': 'resnet8', 'heads': (1,)}, 'no tensors for heads=(1,)')
    refused(file, {'name': 'resnet8', 'num_classes': 3}, 'num_classes is no override')
    refused(file, {'name': 'resnet8', 'widht': 2.0}, "no field 'widht'")
    refused(file, {'name': 'resnet8', 'width': -1.0}, 'width -1.0')
    refused(tmp_path / 'no.pth', {'name': 'resnet8'}, 'cannot read')
    assert pretrained.load(file, {'name': 'resnet8', 'adapter': 0, 'heads': ()}).num_classes == 7


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_values_that_are_not_finite(value, tmp_path, state):
    bad = state | {'bn1.bias': np.full(16, value, np.float32)}
    refused(save(tmp_path / 'x.pth', bad), {'name': 'resnet8'}, 'bn1.bias', 'not finite')
    bad = state | {'bn1.bias': np.full(16, 1e300)}
    refused(save(tmp_path / 'x.pth', bad), {'name': 'resnet8'}, 'bn1.bias', 'not finite')


# --- the table


def test_every_family_but_the_plain_cnn_has_a_pytorch_form():
    assert {make.func for make in ALL.values()} - pretrained.RULES.keys() == {ALL['cnn'].func}


@pytest.mark.parametrize('name', FEW[1:])
def test_the_tensors_of_a_model_are_found_and_are_no_other_models(name):
    """All models are in zoo/."""
    assert_tensors_are_found(name)


def test_images_are_those_of_the_published_weights():
    for name, facts in EXPECTED.items():
        found = pretrained.input_of(name)
        assert (found['size'] if found else 32) == facts.size, name
        if found:
            halves = name in ('inception_v3', 'googlenet')
            assert found['mean'] == ((0.5,) * 3 if halves else (0.485, 0.456, 0.406))
            assert found['std'] == ((0.5,) * 3 if halves else (0.229, 0.224, 0.225))


# --- the run


def snapshot(directory):
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in directory.rglob('*')
        if path.is_file()
    }


def test_the_same_weights_again_change_nothing_and_others_are_refused(file, tmp_path):
    imported = pretrained.load(file, {'name': 'resnet8'})
    directory = RunDirectory(tmp_path / 'teacher/seed0')
    facts = {'image_shape': (32, 32, 3), **CIFAR}
    assert pretrained.make_run(directory, 'teacher', imported, **facts)
    before = snapshot(tmp_path)
    assert not pretrained.make_run(directory, 'teacher', imported, **facts)
    other = pretrained.load(
        save(tmp_path / 'other.pth', cifar_resnet(1, 7, seed=1)), {'name': 'resnet8'}
    )
    changes = [
        ('teacher', other, facts, 'config.sha256'),
        ('teacher', imported, facts | {'mean': (0.5, 0.5, 0.5)}, 'data.mean'),
        ('teacher', imported, facts | {'image_shape': (64, 64, 3)}, 'data.image_shape'),
        ('another', imported, facts, 'run'),
    ]
    for name, weights, these, word in changes:
        with pytest.raises(
            UserError,
            match=rf'holds another run or other weights \({word}: .*choose another --workdir',
        ):
            pretrained.make_run(directory, name, weights, **these)
    (tmp_path / 'other.pth').unlink()
    assert snapshot(tmp_path) == before


def test_what_was_measured_goes_into_the_result(file, tmp_path):
    imported = pretrained.load(file, {'name': 'resnet8'})
    directory = RunDirectory(tmp_path / 'teacher/seed0')
    measured = {'test': {'top1': 0.5}, 'flops': 7.0}
    pretrained.make_run(
        directory,
        't',
        imported,
        image_shape=(32, 32, 3),
        data_name='digits',
        measured=measured,
        **CIFAR,
    )
    result = directory.result()
    assert (result['test'], result['flops'], result['val'], result['seconds']) == (
        {'top1': 0.5},
        7.0,
        None,
        None,
    )
    assert result['imported'] == {'path': str(file), 'sha256': imported.checksum}
    assert directory.info()['data']['name'] == 'digits'


def test_an_interrupted_import_is_completed(file, tmp_path):
    imported = pretrained.load(file, {'name': 'resnet8'})
    directory = RunDirectory(tmp_path / 'teacher/seed0')
    facts = {'image_shape': (32, 32, 3), **CIFAR}
    pretrained.make_run(directory, 'teacher', imported, **facts)
    (directory.path / 'result.json').unlink()
    next(
        p for p in Path(directory.checkpoints).rglob('*') if p.is_file() and 'state' in p.parts
    ).write_bytes(b'')
    with pytest.raises(UserError, match='unfinished'):
        trained.load(directory)
    assert pretrained.make_run(directory, 'teacher', imported, **facts)
    assert all(
        jax.tree.leaves(
            jax.tree.map(
                np.array_equal, dict(trained.load(directory).variables), imported.variables
            )
        )
    )


def test_a_directory_of_something_else_stays_as_it_is(file, tmp_path):
    imported = pretrained.load(file, {'name': 'resnet8'})
    (tmp_path / 'seed0').mkdir()
    (tmp_path / 'seed0/thesis.tex').write_text('years of work')
    with pytest.raises(UserError, match='is not empty and holds no run'):
        pretrained.make_run(
            RunDirectory(tmp_path / 'seed0'), 'x', imported, image_shape=(32, 32, 3), **CIFAR
        )
    assert [p.name for p in (tmp_path / 'seed0').iterdir()] == ['thesis.tex']


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'class_names': ['a', 'b']}, '2 class names for 7 classes'),
        ({'mean': (0.5,)}, r'mean \(0.5,\) does not fit to images of 3 channels'),
        ({'std': (0.5, 0.5, math.nan)}, 'std is .*nan.* must be finite'),
        ({'std': (0.5, 0.5, 0.0)}, 'must be greater than 0'),
        (
            {'image_shape': (32, 32, 1), 'mean': (0.5,), 'std': (0.5,)},
            r'do not take images of shape \(32, 32, 1\)',
        ),
    ],
)
def test_facts_that_do_not_fit_to_the_weights(file, tmp_path, changes, match):
    imported = pretrained.load(file, {'name': 'resnet8'})
    with pytest.raises(UserError, match=match):
        pretrained.make_run(
            RunDirectory(tmp_path / 'x'),
            'x',
            imported,
            **{'image_shape': (32, 32, 3), **CIFAR, **changes},
        )
    assert not (tmp_path / 'x').exists()


# --- the command


def run(*flags):
    """Exit status of the command in this process."""
    try:
        command.main([str(flag) for flag in flags])
    except SystemExit as end:
        return end.code
    return 0


def test_the_command_in_a_process_of_its_own(file, tmp_path):
    names = tmp_path / 'names.txt'
    names.write_text('\n'.join(f'class {i}' for i in range(7)) + '\n')
    flags = [
        str(file),
        '--model=resnet8',
        f'--workdir={tmp_path}/runs',
        '--name=big',
        f'--classes={names}',
        *CIFAR_FLAGS,
    ]
    done = commands.run('kd_jax.pretrained', *flags, env=environment())
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout == f'big: {PARAMS:,} parameters, 7 classes; teacher: {tmp_path}/runs/big\n'
    facts = json.loads((tmp_path / 'runs/big/seed0/config.json').read_text())['data']
    assert facts['class_names'] == [f'class {i}' for i in range(7)]
    assert facts['image_shape'] == [32, 32, 3] and facts['mean'] == list(CIFAR['mean'])
    assert trained.load(find_run(tmp_path / 'runs/big', seed=0)).network.model.num_classes == 7
    flags[0] = f'{tmp_path}/nothing.pth'
    broken = commands.run('kd_jax.pretrained', *flags, env=environment())
    assert broken.returncode == 2 and broken.stdout == ''
    assert broken.stderr.startswith('error: ') and broken.stderr.count('\n') == 1


def test_the_command_again_and_with_overrides(tmp_path, capsys):
    path = save(tmp_path / 'x.pth', cifar_resnet(2, 10))
    flags = (
        path,
        '--model=resnet8',
        f'--workdir={tmp_path}',
        *CIFAR_FLAGS,
        '--size=40',
        '--override',
        'depth=2',
    )
    assert run(*flags) == 0
    assert capsys.readouterr().out.endswith(f'; teacher: {tmp_path}/resnet8\n')
    info = json.loads((tmp_path / 'resnet8/seed0/config.json').read_text())
    assert info['config']['model'] == {'name': 'resnet8', 'depth': 2.0}
    assert info['data']['image_shape'] == [40, 40, 3]
    assert run(*flags) == 0
    assert capsys.readouterr().out.endswith(f'; already there as teacher: {tmp_path}/resnet8\n')


@pytest.mark.parametrize(
    ('flags', 'parts'),
    [
        ([], ['required: file, --model, --workdir']),
        (['FILE', '--model=resnet8', '--workdir=W', '--colour=3'], ['--colour=3']),
        (['FILE', '--model=resnet8', '--workdir=W'], ['no usual normalisation', '--mean=']),
        (
            ['FILE', '--model=resnet8', '--workdir=W', '--mean=a,b,c', *CIFAR_FLAGS[1:]],
            ['--mean', "'a,b,c'"],
        ),
        (
            ['FILE', '--model=resnet8', '--workdir=W', '--mean=0.5', *CIFAR_FLAGS[1:]],
            ['does not fit to images of 1'],
        ),
        (['FILE', '--model=resnet8', '--workdir=W', *CIFAR_FLAGS, '--size=0'], ['--size=0']),
        (
            ['FILE', '--model=resnet8', '--workdir=W', *CIFAR_FLAGS, '--size=big'],
            ['--size', "'big'"],
        ),
        (['FILE', '--model=resnet8', '--workdir=W', *CIFAR_FLAGS, '--name=a/b'], ['--name=a/b']),
        (['FILE', '--model=resnet8', '--workdir=W', *CIFAR_FLAGS, '--name=..'], ['--name=..']),
        (['FILE', '--model=resnet8', '--workdir=FILE', *CIFAR_FLAGS], ['cannot write to']),
        (
            ['FILE', '--model=resnet8', '--workdir=W', *CIFAR_FLAGS, '--classes=/nowhere'],
            ['/nowhere', 'one name a line'],
        ),
        (
            ['FILE', '--model=resnet8', '--workdir=W', *CIFAR_FLAGS, '--classes=FILE'],
            ['one name a line'],
        ),
        (
            ['FILE', '--model=resnet8', '--workdir=W', *CIFAR_FLAGS, '--override', 'width'],
            ["'width'", 'FIELD=VALUE'],
        ),
        (
            ['FILE', '--model=resnet8', '--workdir=W', *CIFAR_FLAGS, '--override', 'width=wide'],
            ['width=wide', '1.0'],
        ),
        (
            ['FILE', '--model=resnet8', '--workdir=W', *CIFAR_FLAGS, '--override', 'kernel=4'],
            ['kernel 4', 'odd'],
        ),
        (
            ['FILE', '--model=resnet8', '--workdir=W', *CIFAR_FLAGS, '--override', 'colour=4'],
            ["no field 'colour'"],
        ),
        (
            ['FILE', '--model=resnet8', '--workdir=W', *CIFAR_FLAGS, '--override', 'num_classes=4'],
            ['num_classes'],
        ),
        (['FILE', '--model=resnet81', '--workdir=W', *CIFAR_FLAGS], ["unknown model 'resnet81'"]),
        (
            ['/nowhere.pth', '--model=resnet8', '--workdir=W', *CIFAR_FLAGS],
            ['cannot read /nowhere.pth'],
        ),
    ],
)
def test_mistakes_on_the_command_line(flags, parts, file, tmp_path, capsys):
    flags = [flag.replace('FILE', str(file)).replace('=W', f'={tmp_path}/w') for flag in flags]
    assert run(*flags) == 2
    printed = capsys.readouterr()
    assert printed.out == ''
    assert printed.err.startswith('error: ') and printed.err.count('\n') == 1
    for part in parts:
        assert part in printed.err
    assert not (tmp_path / 'w').exists()
