"""How Sphinx makes the site: `python -m sphinx -W --keep-going -b html docs docs/_build`."""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'docs')]
os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # the reference imports kd_jax

import docstrings  # noqa: E402

import kd_jax  # noqa: E402

project = 'kd_jax'
release = version = kd_jax.__version__
author = 'the kd_jax authors'
html_title = f'{project} {release}'
html_show_sphinx = html_show_copyright = False

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx_copybutton',
]
exclude_patterns = ['_build']
smartquotes = False  # quotes and dashes are those of commands

myst_heading_anchors = 3
myst_enable_extensions = ['colon_fence']

html_theme = 'furo'
html_static_path = ['_static']
html_css_files = ['site.css']
html_theme_options = {'navigation_with_keys': True}

autodoc_member_order = 'bysource'
autodoc_default_options = {'members': True}
autodoc_inherit_docstrings = False
autodoc_typehints_format = 'short'
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
napoleon_google_docstring, napoleon_numpy_docstring = True, False


def take_root_page(app, docname, source):
    """Two pages are files of the root, whose links are read from there."""
    if docname in ('contributing', 'changelog'):
        path = ROOT / f'{docname.upper()}.md'
        app.env.note_dependency(str(path))
        text = path.read_text(encoding='utf-8').replace('](docs/', '](')
        elsewhere = r'\[([^\]]+)\]\((?!\w+:|#)([^)\s]+)\)'
        source[0] = re.sub(elsewhere, lambda found: _known(*found.group(0, 1, 2)), text)


def _known(link, text, target):
    """A link to a page; of one to another file its text."""
    return link if (ROOT / 'docs' / target.partition('#')[0]).is_file() else text


def mend_docstring(app, what, name, obj, options, lines):
    lines[:] = docstrings.to_rst(lines)


def mend_signature(app, what, name, obj, options, signature, returned):
    """No arguments that Flax adds to every module, and defaults as they would be written."""
    if signature:
        signature = re.sub(r', (parent|name): .*?(?=, \w+:|\)$)', '', signature)
        signature = re.sub(r'<PjitFunction of <function (\w+)>>', r'\1', signature)
        signature = re.sub(r'<factory>|<[\w.]+ object>', '...', signature)
        signature = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r'\1', signature)
    return signature, returned


def skip_member(app, what, name, obj, skip, options):
    """Fields of named tuples, and what other packages give to a class, say nothing of their own."""
    field = (getattr(obj, '__doc__', None) or '').startswith('Alias for field')
    others = not getattr(obj, '__module__', 'kd_jax').startswith('kd_jax')
    return True if field or others or name in ('replace', 'dtype') else None


def setup(app):
    app.connect('source-read', take_root_page)
    app.connect('autodoc-process-docstring', mend_docstring, priority=100)  # before napoleon
    app.connect('autodoc-process-signature', mend_signature)
    app.connect('autodoc-skip-member', skip_member)
