"""Configuration files that cannot be read are told in one line, by their names."""

import pytest

from mmsparse.apis.config import read_file
from mmsparse.errors import UsageError

BASES = (
    r"; a _base_ is a path .*'mmdet::_base_/default_runtime\.py'; files of mmsparse "
)
BROKEN = 'x = 1\ny = (\n'
# What stands in mine.py, beside broken.py, and what is told.
FAULTS = {
    'syntax': (BROKEN, r"mine\.py: SyntaxError: '\(' was never closed \(line 2\)"),
    'syntax of a base': (
        "_base_ = './broken.py'",
        r'\./broken\.py: SyntaxError: .* \(line 2\)',
    ),
    'name': ('x = 1\ny = z\n', r"mine\.py: NameError: name 'z' .* \(line 2\)"),
    'no base': ("_base_ = './no.py'", rf'mine\.py: no such _base_: .*\./no\.py{BASES}'),
    'no base of a host': (
        "_base_ = 'mmengine::no/no.py'",
        r'mine\.py: no such _base_: .*no\.py; a _base_ is',
    ),
    'no folder of a host': (
        "_base_ = 'mmdet::no.py'",
        rf'mine\.py: no such _base_: mmdet::no\.py{BASES}',
    ),
    'a base of ours': (
        "_base_ = 'mmsparse::dat/dat-tiny.py'",
        rf'mine\.py: no such _base_: mmsparse::dat/dat-tiny\.py{BASES}',
    ),
    'a base that is no config': (
        "_base_ = './README.md'",
        r'README\.md is no configuration; those end in \.py, \.yml, \.yaml, \.json',
    ),
    'import': (
        "custom_imports = dict(imports=['no_module'])",
        r"mine\.py: No module named 'no_module'; PYTHONPATH must have the folders",
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_file_that_cannot_be_read_is_told(tmp_path, fault):
    content, message = FAULTS[fault]
    (tmp_path / 'broken.py').write_text(BROKEN)
    (tmp_path / 'README.md').write_text('Mine.\n')
    (tmp_path / 'mine.py').write_text(content)

    with pytest.raises(UsageError, match=f'^config: .*{message}') as told:
        read_file(str(tmp_path / 'mine.py'))

    assert '\n' not in str(told.value)


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('README.md', 'Mine.\n', r'README\.md is no configuration; those end in \.py'),
        ('mine.json', '{"x": ', r'mine\.json: Expecting value: line 1'),
        ('mine.yml', 'x: y: z', r'mine\.yml: yaml\.\S+: mapping values are not'),
    ],
)
def test_a_file_of_another_kind_is_told(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)

    with pytest.raises(UsageError, match=f'^config: {tmp_path}/{message}'):
        read_file(str(tmp_path / name))
