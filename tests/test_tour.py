"""The notebook as it is in the repository, which test_packaging.py executes."""

import re
from pathlib import Path

import nbformat
import pytest

TOUR = Path(__file__).parents[1] / 'docs' / 'tour.ipynb'


@pytest.fixture(scope='module')
def notebook():
    return nbformat.read(TOUR, as_version=4)


def test_the_tour_is_small_and_names_no_folder_of_a_machine():
    text = TOUR.read_text()

    assert len(text) < 300_000
    assert not re.findall(r'/(?:tmp|home|root|Users)/', text)


def test_the_tour_was_executed_from_the_first_to_the_last_cell(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']

    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert all(cell.outputs for cell in cells[1:])
    streams = {out.name for cell in cells for out in cell.outputs if 'name' in out}
    assert streams == {'stdout'}


def test_links_of_the_tour_lead_somewhere(notebook):
    texts = [cell.source for cell in notebook.cells if cell.cell_type == 'markdown']
    links = re.findall(r'\]\(([^)#]+)', '\n'.join(texts))

    assert len(links) > 10
    for link in links:
        assert (TOUR.parent / link).exists(), link


def test_the_program_of_the_demo_page_runs(capsys):
    text = TOUR.with_name('demo.md').read_text()
    (program,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)

    exec(program, {})

    assert re.fullmatch(r'\(\d+, \d+, 3\)\n', capsys.readouterr().out)
