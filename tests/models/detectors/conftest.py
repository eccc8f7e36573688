import pytest
from tiny_detectors import build_detector, detector_config, make_images


@pytest.fixture
def config():
    return detector_config


@pytest.fixture
def build():
    return build_detector


@pytest.fixture
def images():
    return make_images
