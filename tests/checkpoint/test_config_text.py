import pytest

from mmsparse.checkpoint.config_text import literal_settings

TEXT = """
import os
_base_ = ['a.py', "b.py"]
model = dict(type='X', head={'topk': (1, 5)}, sizes=[1, -2.5], norm=None)
later = model
command = os.system('true')
nested = dict(run=print('executed'))
lr: float = 0.1
"""


def test_plain_values_are_read_and_nothing_is_run(capsys):
    assert literal_settings(TEXT) == dict(
        _base_=['a.py', 'b.py'],
        model=dict(type='X', head=dict(topk=(1, 5)), sizes=[1, -2.5], norm=None),
    )
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
    'text',
    [None, 3, 'model = dict(', '\0', '(' * 100_000],
    ids=['no', 'number', 'cut', 'zero', 'deep'],
)
def test_other_texts_have_no_settings(text):
    assert literal_settings(text) == {}
