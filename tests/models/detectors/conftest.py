import pytest
from tiny_detectors import build_detector, detector_config, make_pictures


@pytest.fixture
def config():
    return detector_config


@pytest.fixture
def build():
    return build_detector


@pytest.fixture
def pictures():
    return make_pictures
