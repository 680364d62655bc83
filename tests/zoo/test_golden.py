"""The zoo against PyTorch: features and logits of `golden/`, made by
`golden/make.py`, and the reference counts.

The same random weights go through the importer, so its names are proved too. The slow
test needs PyTorch and torchvision themselves: every network at its native size, from
files written by `torch.save`.
"""

import importlib
import json
import sys
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from helpers import TESTS
from model_facts import EXPECTED

from kd_jax import pretrained
from kd_jax.models import MODELS, build

GOLDEN = TESTS / 'golden'
sys.path.insert(0, str(GOLDEN))

from weights import image, sample, tensor  # noqa: E402

NAMES = sorted(path.stem for path in GOLDEN.glob('*.npz'))
COUNTS = json.loads((GOLDEN / 'counts.json').read_text())
# what the table of models does not list by itself
VARIANTS = {'googlenet_aux': {'name': 'googlenet', 'aux': True}}


def model_of(name):
    """{'name', and overrides} of what golden/ calls `name`."""
    return VARIANTS.get(name, {'name': name})


def predict(imported, images):
    """Features, logits and the auxiliary heads' logits (`head_<name>`),
    compiled in half the usual time.
    """
    model = build(num_classes=imported.num_classes, **imported.model)
    output = small_models.predict(model, imported.variables, images)
    heads = {f'head_{key}': head.logits for key, head in output.heads.items() if key != 'head'}
    found = {**output.features, **heads, 'logits': output.logits}
    return {key: np.asarray(value) for key, value in found.items() if not key.endswith('_pre')}


def test_the_goldens_cover_every_family_that_weights_can_be_imported_for():
    assert {MODELS[model_of(name)['name']].func for name in NAMES} == set(pretrained.RULES)
    assert sum(path.stat().st_size for path in GOLDEN.glob('*.npz')) < 1_000_000


def test_the_random_weights_are_those_that_the_goldens_were_made_with():
    """If numpy changes its streams, this test says so, and golden/make.py must be run again."""
    values = [
        tensor('conv1.weight', (2, 1, 1, 1)).ravel(),
        tensor('bn1.running_var', (2,)),
        image(1, 1, 1, 2).ravel(),
    ]
    expected = [
        (0.0142213786, -0.5650113821),
        (0.8013546467, 1.1007896662),
        (1.1176220179, -1.3871248960),
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_imported_weights_give_the_features_and_logits_of_pytorch(name, monkeypatch, tmp_path):
    with np.load(GOLDEN / f'{name}.npz') as file:
        expected = dict(file)
    lines = [line.split() for line in bytes(expected.pop('inventory')).decode().splitlines()]
    state = {key: tensor(key, tuple(map(int, shape))) for key, *shape in lines}
    # the slow test reads real files
    monkeypatch.setattr(pretrained.reader, 'read', lambda path, note: state)
    path = tmp_path / 'weights.pth'
    path.touch()
    imported = pretrained.load(path, model_of(name))
    assert sum(x.size for x in state.values()) == sum(
        small_models.size(tree) for tree in imported.variables.values()
    )
    got = predict(imported, image(*expected.pop('image')))
    assert got.keys() == {key.partition('.')[0] for key in expected}
    for key, value in got.items():
        assert value.shape == tuple(expected[f'{key}.shape']), key
        assert expected[key].std() > 0.01, key  # a dead network would prove nothing
        value = value.reshape(-1) if key == 'logits' else sample(value)
        np.testing.assert_allclose(
            value, expected[key], rtol=0, atol=1e-4 * expected[f'{key}.max'], err_msg=key
        )


def test_the_reference_counts_are_those_that_torchvision_states():
    stated = {
        name: row
        for name, row in COUNTS.items()
        if 'published_params' in row and name not in VARIANTS
    }
    assert len(stated) == 25
    for name, row in stated.items():
        assert row['params'] == row['published_params'], name
        # torchvision states three decimals, and does not count Inception's auxiliary head
        assert row['macs'] / 1e9 == pytest.approx(
            row['published_gmacs'], abs=6e-4 if name != 'inception_v3' else 6e-3
        ), name


@pytest.mark.parametrize('name', sorted(COUNTS))
def test_the_expected_counts_are_those_of_pytorch(name):
    row = COUNTS[name]
    if name in VARIANTS:
        overrides = {key: value for key, value in VARIANTS[name].items() if key != 'name'}
        shapes = small_models.shapes_of(
            build(VARIANTS[name]['name'], 1000, **overrides), (1, row['size'], row['size'], 3)
        )
        found = small_models.size(shapes['params']), small_models.size(shapes['batch_stats'])
        assert found == (row['params'], row['statistics'])
        return
    facts = EXPECTED[name]
    assert (facts.params, facts.statistics, facts.size) == (
        row['params'],
        row['statistics'],
        row['size'],
    )
    assert facts.macs == pytest.approx(row['macs'], rel=0.02)


def reference():
    """golden/make.py, or a skipped test where PyTorch or torchvision are not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of importing them
        pytest.importorskip('torch')
        try:
            return importlib.import_module('make')
        except ModuleNotFoundError as error:
            pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', sorted(name for name, row in COUNTS.items() if 'published_params' in row)
)
def test_a_file_of_torchvision_gives_its_features_and_logits_at_the_native_size(name, tmp_path):
    make = reference()
    size = COUNTS[name]['size']
    network, images = make.fill(make.make(name)), image(1, size, size, 3)
    path = tmp_path / f'{name}.pth'
    make.torch.save(network.state_dict(), path)
    expected = {
        key: value.numpy()
        for key, value in make.run(name, network, make.torch.from_numpy(images)).items()
    }
    del network
    imported = pretrained.load(path, model_of(name))
    path.unlink()
    got = predict(imported, jnp.asarray(images))
    assert got.keys() == expected.keys()
    errors = {
        key: np.abs(got[key] - value).max() / np.abs(value).max() for key, value in expected.items()
    }
    print(f'{name}: {max(errors.values()):.1e}')
    assert all(
        got[key].shape == value.shape and value.std() > 0.01 for key, value in expected.items()
    )
    assert max(errors.values()) < 1e-4, errors
