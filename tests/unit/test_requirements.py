"""The requirements files name every package that is imported, with bounds that
the installed one is within.
"""

import ast
import sys
import tomllib
from functools import cache
from importlib import metadata

import pytest
from helpers import REPOSITORY
from packaging.requirements import Requirement

# Where the name to import is another than the package's.
IMPORTED_AS = {
    'absl-py': 'absl',
    'ipython': 'IPython',
    'opencv-python-headless': 'cv2',
    'orbax-checkpoint': 'orbax',
    'pillow': 'PIL',
    'pyyaml': 'yaml',
    'scikit-learn': 'sklearn',
    'tensorflow-cpu': 'tensorflow',
}
FILES = {path.name: path for path in REPOSITORY.glob('requirements*.txt')}
CORE, BENCHMARKS, DEV = 'requirements.txt', 'requirements-benchmarks.txt', 'requirements-dev.txt'
DOCS = 'requirements-docs.txt'
OPTIONAL = {'requirements-extras.txt', 'requirements-tf.txt'}
# What a folder may import at the top of a file; what it may import besides where it is used.
FOLDERS = {
    'kd_jax': ({CORE}, OPTIONAL),
    'configs': ({CORE}, set()),
    'benchmarks': ({CORE, BENCHMARKS}, set()),
    'docs': ({CORE, DOCS}, set()),
    'tests': ({CORE, DEV}, {BENCHMARKS}),
}


def named(file):
    """{import name: `Requirement`} of a requirements file."""
    lines = (line.partition('#')[0].strip() for line in FILES[file].read_text().splitlines())
    found = [Requirement(line) for line in lines if line]
    return {IMPORTED_AS.get(one.name, one.name.replace('-', '_')): one for one in found}


@cache
def tree_of(path):
    return ast.parse(path.read_text())


def imported(path, nodes=ast.walk):
    """The packages of others that a file imports."""
    names = set()
    for node in nodes(tree_of(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {name.partition('.')[0] for name in names} - ours() - set(sys.stdlib_module_names)


@cache
def ours():
    files = (file for folder in ('tests', 'docs') for file in (REPOSITORY / folder).rglob('*.py'))
    return {*FOLDERS, *(name for file in files for name in (file.stem, file.parent.name))}


def at_top(tree):
    return tree.body


@pytest.mark.parametrize('folder', FOLDERS)
def test_every_package_that_is_imported_is_named(folder):
    first, later = FOLDERS[folder]
    paths = sorted((REPOSITORY / folder).rglob('*.py'))
    assert paths
    for files, nodes in ((first, at_top), (first | later, ast.walk)):
        known = {name for file in files for name in named(file)}
        missing = {
            (str(path.relative_to(REPOSITORY)), name)
            for path in paths
            for name in imported(path, nodes) - known
        }
        if folder == 'tests' and nodes is at_top:  # it needs PyTorch to make what the others read
            missing = {
                (path, name) for path, name in missing if not path.startswith('tests/golden/')
            }
        assert not missing, f'not in {", ".join(sorted(files))}'


def test_every_file_is_known():
    used = {file for files in FOLDERS.values() for both in files for file in both}
    assert used == FILES.keys()


@pytest.mark.parametrize('file', sorted(FILES))
def test_bounds_are_given_and_fit_to_what_is_installed(file):
    for requirement in named(file).values():
        assert requirement.specifier, f'{requirement.name} has no bounds'
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:  # of what is optional
            assert file != CORE, requirement.name
            continue
        assert requirement.specifier.contains(version, prereleases=True), (
            f'{requirement} is installed as {version}'
        )


def test_the_wheel_needs_what_the_requirements_file_names_but_the_test_runner():
    project = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())['project']
    needed = {str(Requirement(line)) for line in project['dependencies']}
    expected = {name: str(one) for name, one in named(CORE).items() if name != 'pytest'}
    assert needed == {*expected.values()}
    optional = {str(one) for file in OPTIONAL for one in named(file).values()}
    optional |= {str(one) for one in named(BENCHMARKS).values()}
    for extra, lines in project['optional-dependencies'].items():
        for line in lines:
            one = Requirement(line)
            core = one.name == 'jax' and one.specifier == named(CORE)['jax'].specifier
            assert core or str(one) in optional, extra
