"""The sections of docs/frameworks.md that need torch and torchvision alone."""

from page_code import run


def test_layers_train_in_a_module_with_and_without_checkpointing(capsys):
    names = run('frameworks', 'Your own module', capsys)

    stage, x = names['stage'], names['x']
    checkpointed = stage(x)
    stage.checkpointed = False
    assert checkpointed.equal(stage(x))


def test_detectors_of_torchvision_train_and_predict(capsys):
    names = run('frameworks', 'torchvision', capsys)

    for name, weight in names['detector'].named_parameters():
        assert weight.grad.isfinite().all(), name
