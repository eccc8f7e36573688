"""Read configs of mmdet, mmseg and mmpretrain, and build their models."""

from mmsparse.apis.config import (
    add_cfg_options,
    config_arguments,
    find_host,
    load_config,
    read_config,
    register_host,
)
from mmsparse.apis.model import build_model, build_runner, load_model, load_weights
from mmsparse.apis.tta import use_tta

__all__ = [
    'add_cfg_options',
    'build_model',
    'build_runner',
    'config_arguments',
    'find_host',
    'load_config',
    'load_model',
    'load_weights',
    'read_config',
    'register_host',
    'use_tta',
]
