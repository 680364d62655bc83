"""The zoo against PyTorch: features and logits of `golden/`, made by
`golden/make.py`, and the reference counts.

The same random weights go through the importer, so its names are proved too. The smallest
networks are in unit/test_models.py. The `long` test needs PyTorch and torchvision themselves: every
network at its native size, from files written by `torch.save`.
"""

import importlib
import warnings

import model_checks as checks
import numpy as np
import pytest
import small_models
from model_checks import COUNTS, GOLDEN, GOLDENS, SMALL_GOLDENS, VARIANTS, variant
from model_facts import EXPECTED
from weights import image, tensor

from kd_jax import pretrained
from kd_jax.models import MODELS, build


def test_the_goldens_cover_every_family_that_weights_can_be_imported_for():
    assert {MODELS[variant(name)['name']].func for name in GOLDENS} == set(pretrained.RULES)
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


@pytest.mark.parametrize('name', sorted({*GOLDENS} - {*SMALL_GOLDENS}))
def test_imported_weights_give_the_features_and_logits_of_pytorch(name, monkeypatch, tmp_path):
    checks.assert_equal_to_pytorch(name, monkeypatch, tmp_path)


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


@pytest.mark.long
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
    imported = pretrained.load(path, variant(name))
    path.unlink()
    got = checks.features_and_logits(imported, images)
    assert got.keys() == expected.keys()
    errors = {
        key: np.abs(got[key] - value).max() / np.abs(value).max() for key, value in expected.items()
    }
    print(f'{name}: {max(errors.values()):.1e}')
    assert all(
        got[key].shape == value.shape and value.std() > 0.01 for key, value in expected.items()
    )
    assert max(errors.values()) < 1e-4, errors
