import re
import shutil
import sys
from pathlib import Path

import pytest
import zoo_tables

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch):
    """Run the command; without arguments it writes the tables."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['zoo_tables.py', *arguments])
        zoo_tables.read_models.cache_clear()
        zoo_tables.main()

    return run


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the pages and metafiles that the command works on."""
    shutil.copyfile(ROOT / 'README.md', tmp_path / 'README.md')
    for path in ROOT.glob('*/*/*'):
        if path.name in ('README.md', 'metafile.yml'):
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    (tmp_path / 'docs').mkdir()
    shutil.copyfile(ROOT / zoo_tables.PAGE, tmp_path / zoo_tables.PAGE)
    monkeypatch.setattr(zoo_tables, 'ROOT', tmp_path)
    return tmp_path


def test_the_tables_are_up_to_date(run):
    run('--check')


def test_every_config_is_listed_once():
    listed = re.findall(r'\]\(\.\./(\S+\.py)\)', (ROOT / 'docs/configs.md').read_text())
    configs = {
        path.relative_to(ROOT).as_posix()
        for pattern in ('configs/*/*.py', 'projects/*/configs/*.py')
        for path in ROOT.glob(pattern)
        if '_base_' not in path.parts
    }

    assert len(listed) == len(configs)
    assert set(listed) == configs


def test_an_outdated_table_is_reported_and_rewritten(copy, run, capsys):
    readme, page = copy / 'configs/dat/README.md', copy / 'docs/configs.md'
    before = readme.read_text()
    readme.write_text(before.replace('| 83.9 |', '| 84.9 |'))
    page.write_text(page.read_text().replace('top-1 83.9', 'top-1 84.9'))

    with pytest.raises(SystemExit, match=r'docs/configs.md, configs/dat/README.md;'):
        run('--check')
    run()

    assert capsys.readouterr().out.splitlines() == [
        'docs/configs.md',
        'configs/dat/README.md',
    ]
    assert readme.read_text() == before
    run('--check')


def test_text_around_a_table_is_kept(copy, run):
    readme = copy / 'configs/detr/README.md'
    readme.write_text('By hand.\n' + readme.read_text().replace('| 42.70 |', '| 1 |'))

    run()

    text = readme.read_text()
    assert text.startswith('By hand.\n# DETR')
    assert '| 42.70 |' in text


def test_a_section_without_models_raises_an_error(copy, run):
    readme = copy / 'configs/detr/README.md'
    readme.write_text(readme.read_text().replace('models: COCO', 'models: Cityscapes'))

    with pytest.raises(
        SystemExit, match='no model matches the line <!-- models: Citysc'
    ):
        run()


def test_a_pattern_selects_names_or_all_others():
    folder = Path('configs/focus_detr')
    options = [m.name for m in zoo_tables.select(folder, 'COCO', '*_r50_[a-z]*')]
    others = [m.name for m in zoo_tables.select(folder, 'COCO', '!*_r50_[a-z]*')]

    assert 'focus-detr_r50_keep-10_8xb2-12e_coco' in options
    assert 'focus-detr_r50_8xb2-12e_coco' in others
    assert not set(options) & set(others)


def test_the_overview_has_published_results_of_all_tasks():
    text = zoo_tables.overview(['biformer-small', 'focus-detr_r50'], Path('README.md'))

    *_, biformer, focus = text.splitlines()
    assert biformer == (
        '| biformer-small | 25.54 | 4.49 | 83.8 | 47.8 | 49.8 '
        '| [biformer](configs/biformer) |'
    )
    assert focus == (
        '| focus-detr_r50 | 49.39 |  |  | 48.8 |  | [focus_detr](configs/focus_detr) |'
    )
    with pytest.raises(SystemExit, match="no model named 'swin-tiny'"):
        zoo_tables.overview(['swin-tiny'], Path('README.md'))
