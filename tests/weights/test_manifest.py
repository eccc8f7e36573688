"""The manifest in the package, and the command that writes it."""

import json
import sys
from pathlib import Path

import pytest
import weights_manifest

from mmsparse import list_models
from mmsparse.errors import UsageError
from mmsparse.weights import entries

ROOT = Path(__file__).parents[2]


@pytest.fixture
def write(monkeypatch):
    def write(*arguments):
        monkeypatch.setattr(sys, 'argv', ['weights_manifest.py', *arguments])
        weights_manifest.main()

    return write


def test_the_manifest_is_up_to_date(write):
    write('--check')


def test_an_outdated_manifest_is_an_error_and_written_again(
    write, tmp_path, monkeypatch, capsys
):
    path = tmp_path / 'weights.json'
    monkeypatch.setattr(weights_manifest, 'MANIFEST', path)
    path.write_text('[]\n')

    with pytest.raises(SystemExit, match='outdated .*; run python tools/weights_mani'):
        write('--check')

    assert path.read_text() == '[]\n'
    write()
    assert capsys.readouterr().out == f'{path}\n'
    original = ROOT / 'mmsparse' / 'weights' / 'weights.json'
    assert json.loads(path.read_text()) == json.loads(original.read_text())


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('mine', "weights: no metafile has a model 'mine'"),
        ('atss_dat-nano_1xb8-6e_digits', 'atss_dat-nano_1xb8-6e_digits has no results'),
    ],
)
def test_weights_of_a_model_without_results_are_an_error(name, message):
    with pytest.raises(UsageError, match=message):
        weights_manifest.describe(name)


def test_entries_are_complete():
    known = entries()

    assert len({entry.name for entry in known}) == len(known)
    for entry in known:
        assert (ROOT / entry.config).is_file(), entry.name
        assert (entry.sha256 is None) == (entry.size is None), entry.name
        assert entry.official == (entry.page is not None), entry.name
        assert entry.page or entry.urls, entry.name
        assert entry.metrics, entry.name
        if entry.task == 'classification':
            assert entry.model in list_models()


def test_every_file_in_the_repository_has_an_entry():
    files = {path.name for path in (ROOT / 'weights').iterdir()} - {'releases.yml'}

    assert files == {entry.file for entry in entries() if not entry.official}


def test_entries_are_selected_by_task_and_pattern():
    names = [entry.name for entry in entries('segmentation', 'upernet_*')]

    assert names == [
        f'upernet_dat-pp-{arch}_8xb2-160k_ade20k-512x512'
        for arch in ('tiny', 'small', 'base')
    ]
    assert {entry.model for entry in entries('classification', 'shunted-*')} == {
        'shunted-nano',
        'shunted-tiny',
        'shunted-small',
        'shunted-base',
    }
