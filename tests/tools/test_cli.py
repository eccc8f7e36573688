"""Errors, hints and checks that all commands share."""

import logging
import warnings

import _cli

import pytest

from mmsparse.errors import MissingFileError, OfficialWeightsError, UsageError


def run(error, *expected):
    def main():
        raise error

    with pytest.raises(SystemExit) as info:
        _cli.run(main, *expected)
    return info.value.code


@pytest.mark.parametrize('status', [None, 0, 1, True])
def test_the_exit_status_is_that_of_the_command(status):
    with pytest.raises(SystemExit) as info:
        _cli.run(lambda: status)

    assert info.value.code == status


def test_an_expected_error_is_one_line():
    assert run(UsageError('wrong')) == 'error: wrong'
    assert run(OSError('full'), OSError) == 'error: full'
    assert run(KeyboardInterrupt()) == 'interrupted'


def test_any_other_error_keeps_its_traceback():
    def main():
        raise RuntimeError('CUDA error')

    with pytest.raises(RuntimeError):
        _cli.run(main, OSError)


def test_official_weights_have_a_hint_at_the_command_that_converts_them():
    error = OfficialWeightsError('an official checkpoint', 'official.pth')

    assert run(error) == (
        'error: an official checkpoint: python tools/convert_checkpoint.py '
        'official.pth CONVERTED.pth'
    )
    assert run(OfficialWeightsError('official', 'https://x/a.pth')) == 'error: official'


@pytest.mark.parametrize(
    ('path', 'hint'),
    [
        (
            'data/digits/detection',
            '; create it with: python tools/prepare_digits.py',
        ),
        (
            'weights/small.pth',
            '; convert the official weights: python tools/convert_checkpoint.py '
            'DOWNLOADED weights/small.pth',
        ),
        ('data/coco', ''),
    ],
)
def test_a_missing_file_has_a_hint_at_the_command_that_makes_it(path, hint):
    assert run(MissingFileError('missing', path)) == f'error: missing{hint}'


def test_warnings_of_dependencies_are_dropped_and_others_are_not(caplog):
    with warnings.catch_warnings(record=True) as caught:
        for text in _cli.WARNINGS:
            warnings.filterwarnings('ignore', text)
        warnings.warn('pkg_resources is deprecated as an API. See', stacklevel=1)
        warnings.warn('unexpected key in source state_dict', stacklevel=1)
    logger = logging.getLogger('dependencies')
    _cli.filter_log(logger)
    logger.warning('"FileClient" will be deprecated in %s', 'future')
    logger.warning('The loss is high')

    assert [str(x.message) for x in caught] == ['unexpected key in source state_dict']
    assert caplog.messages == ['The loss is high']


def test_a_missing_file_is_named_before_anything_is_built(tmp_path):
    (tmp_path / 'a.jpg').touch()
    _cli.check_files(str(tmp_path / 'a.jpg'))
    for missing in ('b.jpg', ''):
        with pytest.raises(UsageError, match=f'no such file: {tmp_path / missing}'):
            _cli.check_files(str(tmp_path / 'a.jpg'), str(tmp_path / missing))


@pytest.mark.parametrize('other', ['b/cat.jpg', 'a/cat.png', 'a/cat.jpg'])
def test_two_images_with_one_name_are_an_error(other):
    _cli.check_unique_names(['a/cat.jpg', 'a/dog.jpg'])
    with pytest.raises(UsageError, match=f'a/cat.jpg and {other} have the same name'):
        _cli.check_unique_names(['a/cat.jpg', 'a/dog.jpg', other])
