"""Read configs of mmdet, mmseg and mmpretrain, check them, build their models."""

from mmsparse.apis.checks import check_channels, check_data, check_pretrained
from mmsparse.apis.config import (
    add_cfg_options,
    config_arguments,
    find_host,
    load_config,
    read_config,
    register_host,
)
from mmsparse.apis.model import build_model, build_runner, load_model, load_weights

__all__ = [
    'add_cfg_options',
    'build_model',
    'build_runner',
    'check_channels',
    'check_data',
    'check_pretrained',
    'config_arguments',
    'find_host',
    'load_config',
    'load_model',
    'load_weights',
    'read_config',
    'register_host',
]
