"""What stands around the table of the model zoo: where it is written, what it counts, and the names
that it does not have. The table itself is in zoo/.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from kd_jax import pretrained
from kd_jax.errors import UserError
from kd_jax.models import FORMS, MODELS, build
from kd_jax.zoo import BEGIN, END, macs, main


def test_every_rule_has_a_source():
    assert pretrained.sources('resnet20') == ('RepDistiller', 'mdistiller', 'pytorch-cifar-models')
    rules = {rule for family in pretrained.RULES.values() for rule in family}
    assert rules == {rule for _, theirs in pretrained.SOURCES.values() for rule in theirs}


def test_multiply_accumulates_count_padding_groups_and_nested_functions():
    def forward(x, kernel, weights):
        layout = ('NHWC', 'OIHW', 'NHWC')
        x = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=layout, feature_group_count=2
        )
        return jax.nn.relu(x.reshape(1, -1)) @ weights

    arrays = [jnp.zeros(shape) for shape in ((1, 8, 8, 4), (6, 2, 3, 3), (96, 5))]
    counted = macs(jax.make_jaxpr(jax.jit(forward))(*arrays).jaxpr)
    assert counted == 4 * 4 * 6 * (3 * 3 * 2) + 96 * 5  # outputs x what each sums over
    assert macs(jax.make_jaxpr(partial(jnp.add, 1.0))(2.0).jaxpr) == 0


@pytest.mark.parametrize(
    'text',
    [
        'no table here\n',
        f'{BEGIN}\n',
        f'{END}\n',
        f'{END}\n{BEGIN}\n',
        f'{BEGIN}\n{END}\n{BEGIN}\n{END}\n',
        f'{BEGIN}{BEGIN}{END}',
    ],
)
def test_a_file_without_the_markers_is_left_alone(text, tmp_path, capsys):
    path = tmp_path / 'notes.md'
    path.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main(['--write', str(path)])
    assert stopped.value.code == 2
    told = (
        f'error: {path} has no place for the table; put one line {BEGIN} and '
        f'below it one line {END} into it\n'
    )
    assert capsys.readouterr().err == told
    assert path.read_text() == text


@pytest.mark.parametrize('content', [None, b'\xff\xfe'])
def test_a_file_that_cannot_be_read_is_named(content, tmp_path, capsys):
    path = tmp_path / 'notes.md'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        main(['--write', str(path)])
    assert stopped.value.code == 2
    assert re.fullmatch(
        rf'error: cannot read {re.escape(str(path))} \(.+\); give a Markdown file\n',
        capsys.readouterr().err,
    )


def test_names_with_several_forms_are_no_models_and_their_forms_are():
    assert not FORMS.keys() & MODELS.keys()
    for name, forms in FORMS.items():
        assert forms and len(set(forms)) == len(forms), name
        assert set(forms) <= MODELS.keys(), name
    for name in MODELS:
        if name.startswith('imagenet_'):  # the bare name is torchvision's, or the paper's
            assert name in FORMS[name.removeprefix('imagenet_')]
    assert FORMS['shufflenet_v1'] == ('imagenet_shufflenet_v1', 'cifar_shufflenet_v1')
    assert FORMS['shufflenet_v2_x0_5'] == (
        'imagenet_shufflenet_v2_x0_5',
        'cifar_shufflenet_v2_x0_5',
    )
    assert set(FORMS['shufflenet_v2']) == {
        name for name in MODELS if re.match('(imagenet|cifar)_shufflenet_v2', name)
    }
    assert len(FORMS['shufflenet_v2']) == 10


@pytest.mark.parametrize(
    ('name', 'sentence'),
    [
        ('vgg11_bn', "'vgg11_bn' is called 'imagenet_vgg11_bn' here"),
        ('vgg8', "'vgg8' is called 'cifar_vgg8' here"),
        (
            'vgg11',
            (
                "'vgg11' has several forms: imagenet_vgg11, "
                'imagenet_vgg11_bn, cifar_vgg11; name one of them'
            ),
        ),
        (
            'shufflenet_v2_x1_0',
            (
                "'shufflenet_v2_x1_0' has several forms: imagenet_shufflenet_v2_x1_0, "
                'cifar_shufflenet_v2; name one of them'
            ),
        ),
    ],
)
def test_a_name_with_other_forms_is_refused_with_them(name, sentence):
    with pytest.raises(UserError) as caught:
        build(name, 10)
    assert str(caught.value) == sentence
