"""Settings at the top of a config with a wrong name."""

import pytest

from mmsparse.checks import check_data


@pytest.mark.parametrize('name', ['train_dataloder', 'optim_wraper', 'load_form'])
def test_a_misspelled_setting_is_noted(pets, name):
    pets[name] = dict()
    pets['train_pipeline'] = pets['val_evaluator_abs'] = []

    [note] = check_data(pets, 'mmdet')
    assert note.startswith(f'{name} has no effect in MMEngine; did you mean ')
