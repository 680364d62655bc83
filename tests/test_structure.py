"""The shape of the code: imports go downward only, tables are complete, files stay small, config fields are used."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / 'kd_jax'

# A module imports modules of its own level or below. Within a level, only along the pairs named in SAME_LEVEL.
LEVELS = {
    'errors': 0,
    'markdown': 0,
    'spread': 0,
    'models': 0,
    'objectives': 0,
    'metrics': 0,
    'optim': 0,
    'data.augment': 0,
    'data.views': 0,
    'data': 1,
    'checkpoint': 1,
    'workdir': 1,
    'command': 1,
    'monitor': 1,
    'parallel': 1,
    'tables': 1,
    'runtime': 1,
    'pretrained': 1,
    'networks': 2,
    'step': 2,
    'teachers': 2,
    'evaluate': 3,
    'soft_targets': 3,
    'program': 3,
    'imported': 4,
    'record': 4,
    'train': 4,
    'population': 4,
    'study': 5,
    'report': 5,
    'zoo': 5,
    'main': 5,
    'search': 5,
}
SAME_LEVEL = {
    ('objectives', 'models'),
    ('data.views', 'data.augment'),
    ('models', 'errors'),
    ('objectives', 'errors'),
    ('optim', 'errors'),
    ('pretrained', 'checkpoint'),
    ('pretrained', 'parallel'),
    ('pretrained', 'workdir'),
    ('step', 'networks'),
    ('teachers', 'networks'),
    ('program', 'evaluate'),
    ('program', 'soft_targets'),
    ('soft_targets', 'evaluate'),
    ('tables', 'workdir'),
    ('parallel', 'runtime'),
    ('train', 'record'),
    ('population', 'record'),
    ('population', 'train'),
    ('study', 'report'),
    ('main', 'study'),
    ('search', 'main'),
    ('search', 'study'),
}
LEVEL_0_MAY_IMPORT = {'kd_jax', 'jax', 'flax', 'optax', 'numpy'}
HEAVY = {'tensorflow', 'tensorflow_datasets', 'torch', 'onnx', 'matplotlib', 'wandb', 'sklearn', 'tensorboardX', 'optuna'}

SOURCES = sorted(PACKAGE.rglob('*.py'))


def unit_of(path):
    """'models', 'data.augment', 'train': the entry of LEVELS that a file belongs to."""
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    if '.'.join(parts) in LEVELS:
        return '.'.join(parts)
    return parts[0]


def imports(path, top_level_only=False):
    """The dotted names that a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: relative import'
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def units_imported(path):
    found = set()
    for name in imports(path):
        if name.startswith('kd_jax.'):
            parts = name.split('.')[1:]
            whole = '.'.join(parts[:2])
            unit = whole if whole in LEVELS else parts[0]
            if unit in LEVELS:
                found.add(unit)
    # `from kd_jax.data import augment` names the package too.
    return found - {'data'} if unit_of(path) in ('step', 'data.views') else found


def test_every_module_has_a_level():
    units = {unit_of(path) for path in SOURCES if path.name != '__init__.py' or path.parent != PACKAGE}
    assert units == set(LEVELS)


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downward(path):
    if path == PACKAGE / '__init__.py':
        assert not list(imports(path))
        return
    unit = unit_of(path)
    for other in units_imported(path) - {unit}:
        below = LEVELS[other] < LEVELS[unit]
        assert below or (unit, other) in SAME_LEVEL, f'{unit} (level {LEVELS[unit]}) imports {other} (level {LEVELS[other]})'


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_light_modules_stay_light_and_heavy_packages_are_imported_where_they_are_used(path):
    top = {name.split('.')[0] for name in imports(path, top_level_only=True)}
    assert not top & HEAVY
    if path != PACKAGE / '__init__.py' and LEVELS[unit_of(path)] == 0:
        import sys

        assert top - set(sys.stdlib_module_names) <= LEVEL_0_MAY_IMPORT


@pytest.mark.parametrize('path', [*SOURCES, *(ROOT / 'configs').glob('*.py')], ids=lambda p: p.name)
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem != 'utils'


def test_the_main_files_can_be_read_in_one_go():
    for name, most in (('main', 100), ('train', 250)):
        assert len((PACKAGE / f'{name}.py').read_text().splitlines()) <= most


def test_every_field_of_a_config_has_a_comment_and_is_read_somewhere():
    """A field nobody reads is a promise nobody keeps."""
    text = (ROOT / 'configs' / 'common.py').read_text()
    fields = re.findall(r'^    c\.((?:\w+\.)*(\w+)) = (.*)$', text, flags=re.MULTILINE)
    assert len(fields) > 50
    code = '\n'.join(path.read_text() for path in SOURCES)
    for path, name, value in fields:
        if 'ConfigDict()' not in value or '#' in value:
            assert '  # ' in value or value.startswith('of.'), f'{path} has no comment'
        read = re.search(rf'\b{name}\b', code)
        assert read, f'{path} is read nowhere'


def test_levels_and_pairs_name_what_exists():
    """No entry of this file outlives its module."""
    pairs = {(unit_of(p), other) for p in SOURCES if p != PACKAGE / '__init__.py' for other in units_imported(p)}
    assert pairs >= SAME_LEVEL
