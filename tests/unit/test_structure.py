"""The shape of the code: imports go downward, tables are complete, files and functions stay
small, config fields are used.
"""

import ast
import importlib
import inspect
import itertools
import re
import subprocess
import sys
from collections import Counter, defaultdict

import pytest
from helpers import REPOSITORY

ROOT = REPOSITORY
PACKAGE = ROOT / 'kd_jax'
SOURCES = sorted(PACKAGE.rglob('*.py'))
ALL = [
    *SOURCES,
    *sorted((ROOT / 'configs').glob('*.py')),
    *sorted((ROOT / 'benchmarks').glob('*.py')),
]

# A module imports what stands above it here or on its own line, in no circle.
LAYERS = (
    ('cache', 'errors', 'markdown', 'signals', 'spread'),
    ('fields', 'own', 'records'),
    ('models', 'objectives', 'data', 'metrics', 'optim'),
    (
        'networks',
        'checkpoint',
        'workdir',
        'monitor',
        'display',
        'progress',
        'runtime',
        'command',
        'dispatch',
        'distributed',
    ),
    ('locking',),
    ('config', 'spec', 'parallel', 'target_store', 'pretrained', 'feed'),
    ('config_check', 'methods', 'step', 'teacher_outputs', 'trained', 'jobs'),
    ('evaluation', 'extraction', 'imported', 'initialization'),
    ('placement', 'timing'),
    ('build', 'library', 'executors', 'page'),
    ('divergence', 'train_log', 'following', 'train', 'report'),
    ('study',),
    ('overview',),
    ('main', 'evaluate', 'search_space', 'search_report', 'soft_targets', 'zoo', 'given', 'loop'),
    ('api',),
    ('search_check', 'search_journal', 'search_trials'),
    ('search',),
    ('__main__',),
)
LAYER = {module: number for number, modules in enumerate(LAYERS) for module in modules}
# need these packages alone
LIGHT = ('errors', 'fields', 'own', 'models', 'objectives', 'metrics', 'optim')
LIGHT_MAY_IMPORT = {'kd_jax', 'jax', 'flax', 'optax', 'numpy'}
HEAVY = {
    'tensorflow',
    'tensorflow_datasets',
    'torch',
    'onnx',
    'matplotlib',
    'wandb',
    'sklearn',
    'tensorboardX',
    'optuna',
}

MOST_LINES, MOST_IN_A_FUNCTION, MOST_KEYWORDS, MOST_MEMBERS = 400, 60, 8, 12
# What is longer or has more, and why.
LONG_FUNCTIONS = {
    'kd_jax/api.py: distill': 'what users call: half of it says what its arguments may be'
}
MANY_KEYWORDS = {
    'kd_jax/build.py: StepSpec': 'a record',
    'kd_jax/build.py: RunSpec': 'a record',
}
MANY_MEMBERS = {
    'kd_jax/config.py: Run': 'a record: the fields of a run',
    'kd_jax/data/__init__.py: Settings': 'a record: the fields of a data set',
    'kd_jax/optim.py: Settings': 'a record: the fields of an optimiser',
    'kd_jax/progress.py: Status': 'a record: what there is to show',
    'kd_jax/records.py: Result': 'a record: the fields of result.json',
    'kd_jax/spec.py: RunSpec': 'a record: what the seeds of a run share',
    'kd_jax/data/tfds_description.py: Description': 'a record: the fields of dataset_info.json',
}


def module_of(path):
    """'models', 'train': the entry of LAYERS that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix('').parts[0]


def imports(path, top_level_only=False):
    """The dotted names that a file imports."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: relative import'
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def imported_by(path):
    """The modules of the package that a file imports, besides its own."""
    names = (name.split('.')[1] for name in imports(path) if name.startswith('kd_jax.'))
    return {name for name in names if name in LAYER} - {module_of(path)}


def files(paths):
    return pytest.mark.parametrize('path', paths, ids=lambda path: str(path.relative_to(ROOT)))


def test_every_module_has_a_layer():
    assert {module_of(path) for path in SOURCES} - {'__init__'} == set(LAYER)


@files(SOURCES)
def test_imports_go_downward(path):
    if path == PACKAGE / '__init__.py':
        code = f'import sys, {PACKAGE.name}; print(*sys.modules)'
        loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        ours = {name for name in loaded.stdout.split() if name.partition('.')[0] == 'kd_jax'}
        assert ours == {'kd_jax', 'kd_jax.signals'} and 'jax' not in loaded.stdout.split()
        return
    here = module_of(path)
    for other in imported_by(path):
        assert LAYER[other] <= LAYER[here], f'{here} imports {other}, which stands below it'


def test_no_module_imports_itself_through_others():
    below = {module: set() for module in LAYER}
    for path in SOURCES:
        if path != PACKAGE / '__init__.py':
            below[module_of(path)] |= imported_by(path)
    while below:
        ready = {module for module, needed in below.items() if not needed & set(below)}
        assert ready, f'a circle among {sorted(below)}'
        below = {module: needed for module, needed in below.items() if module not in ready}


@files(SOURCES)
def test_light_modules_stay_light_and_heavy_packages_are_imported_where_they_are_used(path):
    top = {name.split('.')[0] for name in imports(path, top_level_only=True)}
    assert not top & HEAVY
    if module_of(path) in LIGHT:
        assert top - set(sys.stdlib_module_names) <= LIGHT_MAY_IMPORT


def test_pixels_and_labels_have_one_door():
    """Only kd_jax.data knows that a source is made of arrays."""
    for path in SOURCES:
        if module_of(path) != 'data':
            assert not re.search(
                r'\b(train|val|test|source\(\w+\))\.(image|label)\b', path.read_text()
            ), path


@files(ALL)
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES
    assert path.stem != 'utils'


def test_the_main_files_can_be_read_in_one_go():
    for name, most in (('main', 100), ('study', 200), ('train', 250)):
        assert len((PACKAGE / f'{name}.py').read_text().splitlines()) <= most


def named(path, nodes, too_much):
    where = path.relative_to(ROOT)
    return {f'{where}: {name(node)}' for node, name in nodes if too_much(node)}


def lines_of(node):
    return node.end_lineno - node.lineno + 1


def test_functions_are_at_most_a_screen_long():
    long = set()
    for path in ALL:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and lines_of(node) > MOST_IN_A_FUNCTION:
                long.add(f'{path.relative_to(ROOT)}: {node.name}')
    assert long == set(LONG_FUNCTIONS)


def called(node):
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, 'id', '?')


def test_calls_have_few_keywords():
    many = set()
    for path in ALL:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and len(node.keywords) > MOST_KEYWORDS:
                many.add(f'{path.relative_to(ROOT)}: {called(node)}')
    assert many == set(MANY_KEYWORDS)


def members_of(node):
    """(attributes, methods) of a class: those that its body or its methods set on
    themselves, and its own functions.
    """
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    attributes = {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
    for item in ast.walk(node):
        stored = isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store)
        if stored and isinstance(item.value, ast.Name) and item.value.id == 'self':
            attributes.add(item.attr)
    return len(attributes), len(methods)


def test_classes_have_few_attributes_and_methods():
    many = set()
    for path in ALL:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and max(members_of(node)) > MOST_MEMBERS:
                many.add(f'{path.relative_to(ROOT)}: {node.name}')
    assert many == set(MANY_MEMBERS)


def test_every_field_of_a_config_has_a_comment_and_is_read_somewhere():
    """A field nobody reads is a promise nobody keeps."""
    from kd_jax import config, fields

    records = {config.Run, config.Shared, config.Study, config.Imported, *config.GROUPS.values()}
    lines = [line for path in SOURCES for line in path.read_text().splitlines()]
    uses = Counter(word for line in lines for word in re.findall(r'\w+', line))
    commented = defaultdict(list)
    for before, line in itertools.pairwise(lines):
        if declared := re.match(r'    (\w+): ', line):
            commented[declared[1]].append(before.startswith('    # ') or '  # ' in line)
    names = {name for record in records for name in fields.own(record)}
    assert len(names) > 55
    for name in names:
        assert any(commented[name]), f'{name} has no comment'
        assert uses[name] > len(commented[name]), f'{name} is read nowhere'


def test_every_field_of_a_loss_says_what_it_is():
    """In a comment at its line, or by its name in the docstring of its class."""
    from kd_jax import fields, objectives

    for name, loss in objectives.OBJECTIVES.items():
        for field in fields.own(loss):
            declares = (
                cls for cls in loss.__mro__ if field in vars(cls).get('__annotations__', {})
            )
            owner = next(declares)
            before = line = ''
            for following in inspect.getsource(owner).splitlines():
                before, line = line, following
                if line.startswith(f'    {field}: '):
                    break
            commented = '  # ' in line or before.strip().startswith('# ')
            told = re.search(rf'\b{field}\b', owner.__doc__ or '')
            assert commented or told, f'{name}.{field} says nowhere what it is'


def test_what_is_imported_from_the_package_is_there():
    """Also by scripts that only slow tests run."""
    folders = ('benchmarks', 'configs', 'docs', 'launch', 'tests')
    files = [path for folder in folders for path in (ROOT / folder).rglob('*.py')]
    wanted = {
        (node.module, alias.name): path
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'kd_jax'
        for alias in node.names
    }
    assert len(wanted) > 100
    modules = {'.'.join(path.relative_to(ROOT).with_suffix('').parts) for path in SOURCES}
    for (module, name), path in wanted.items():
        found = importlib.import_module(module)
        there = hasattr(found, name) or f'{module}.{name}' in modules
        assert there, f'{path}: {module} has no {name}'
