"""The measured figures of the pages, and the records that they come from."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture
def measurements():
    spec = importlib.util.spec_from_file_location(
        'measurements', ROOT / 'docs' / 'measurements.py'
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(measurements, monkeypatch):
    """Run the command; without arguments it writes the pages."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['measurements.py', *arguments])
        measurements.main()

    return run


@pytest.fixture
def site(measurements, tmp_path, monkeypatch):
    """A repository with one page and one record."""
    record = dict.fromkeys(measurements.FIELDS, 'text')
    record |= {
        'title': 'Some speed',
        'figures': {'DAT': {'time': '2 s'}, 'BiFormer': {'memory': '3 MiB'}},
        'configs': {'DAT': 'configs/dat/x.py'},
    }
    folder = tmp_path / 'docs' / 'measurements'
    folder.mkdir(parents=True)
    (folder / 'speed.json').write_text(json.dumps(record))
    monkeypatch.setattr(measurements, 'ROOT', tmp_path)
    return tmp_path


def test_pages_agree_with_the_records(run):
    run('--check')


def test_figures_are_written_into_sentences_and_reported_if_they_differ(run, site):
    page = site / 'README.md'
    page.write_text('It takes <!-- measured: speed/DAT/time -->9 s<!-- end -->.')

    with pytest.raises(SystemExit, match='README.md.*: figures differ'):
        run('--check')
    run()

    assert '-->2 s<!-- end -->.' in page.read_text()
    assert '## Some speed' in (site / 'docs/measurements.md').read_text()
    run('--check')


def test_a_table_is_on_one_page_only(run, site):
    page = site / 'docs' / 'speed.md'
    page.write_text('<!-- measured: speed -->\n<!-- end -->\n')

    run()

    assert page.read_text().splitlines()[1:-1] == [
        '|  | time | memory |',
        '|---|---|---|',
        '| [DAT](../configs/dat/x.py) | 2 s |  |',
        '| BiFormer |  | 3 MiB |',
    ]
    listed = (site / 'docs/measurements.md').read_text()
    assert 'The figures are in [docs/speed.md](speed.md).' in listed
    assert '2 s' not in listed


def test_an_unknown_figure_is_an_error(run, site):
    (site / 'README.md').write_text('<!-- measured: speed/DAT/memory --><!-- end -->')

    with pytest.raises(SystemExit, match=r"README.md: .* got 'speed/DAT/memory'"):
        run()


def test_a_figure_at_the_start_of_a_line_is_an_error(run, site):
    (site / 'README.md').write_text(
        'Takes\n<!-- measured: speed/DAT/time --><!-- end -->'
    )

    with pytest.raises(SystemExit, match='must not start a line'):
        run()


def test_a_record_without_its_machine_is_an_error(run, site):
    (site / 'docs/measurements/new.json').write_text('{"title": "New"}')

    with pytest.raises(SystemExit, match='new.json: missing: command, commit'):
        run()


def test_measured_results_of_metafiles_are_in_the_records(measurements):
    figures = {
        figure
        for record in measurements.read_records().values()
        for row in record['figures'].values()
        for figure in row.values()
    }

    for metafile in ROOT.glob('configs/*/metafile.yml'):
        for model in yaml.safe_load(metafile.read_text())['Models']:
            for result in model.get('Results', ()):
                if result.get('Source', '').startswith('mmsparse '):
                    assert {*map(str, result['Metrics'].values())} <= figures, model
