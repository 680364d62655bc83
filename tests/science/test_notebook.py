"""A study in the kernel of a notebook."""

import nbclient
import nbformat
from helpers import REPOSITORY

CELL = """
from configs import digits
from kd_jax import display
from kd_jax.study import Study

config = digits.get_config()
config.seeds, config.tensorboard = (0,), False
del config.runs['teacher'], config.runs['student']
config.runs.alone.epochs, config.runs.alone.eval_every = 40.0, 1.0
pages = []


class Cell(display._Cell):
    def __init__(self, page):
        super().__init__(page)
        pages.append(page)

    def update(self, page):
        super().update(page)
        pages.append(page)


with display.showing() as shown:
    assert type(shown) is display.Notebook
    shown._show = Cell
    Study(config, FOLDER).run(lambda: False)
assert any('<progress value=' in page and 'val top-1' in page for page in pages), pages
"""


def test_a_bar_instead_of_a_line_at_each_validation(tmp_path):
    cell = nbformat.v4.new_code_cell(CELL.replace('FOLDER', repr(str(tmp_path))))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    resources = {'metadata': {'path': str(REPOSITORY)}}
    nbclient.NotebookClient(notebook, kernel_name='python3', resources=resources).execute()
    outputs = notebook.cells[0].outputs
    assert [one.output_type for one in outputs].count('display_data') == 1
    text = ''.join(one.text for one in outputs if one.output_type == 'stream')
    assert text.count('alone seed 0') == 1 and 'test top-1' in text
