"""Build the model or the runner of a config, and load weights."""

import copy
import importlib

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import RUNNERS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from mmsparse.apis.config import HOSTS
from mmsparse.checkpoint.mmengine import register_safe_loader
from mmsparse.checkpoint.state_dict import load_state_dict, read_weights
from mmsparse.datasets.errors import name_annotation_files
from mmsparse.errors import UsageError, config_errors


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config.

    From now on mmengine reads checkpoints in this process without running their code,
    and an error in an annotation file names the file.

    Args:
        cfg: The config; its host library is registered.

    Returns:
        mmengine's Runner, or ``cfg.runner_type``.

    Raises:
        UsageError: A setting is invalid.
    """
    register_safe_loader()
    with config_errors():
        runner = RUNNERS.build(cfg)
    name_annotation_files(runner)
    return runner


def build_model(cfg: Config) -> BaseModel:
    """Build the model of a config, without pretrained weights.

    Args:
        cfg: The config; its host library is registered.

    Returns:
        The model of mmdet, mmseg or mmpretrain.

    Raises:
        UsageError: The config has no model or another ``default_scope``, or a setting
            of the model is invalid.
    """
    scope = cfg.get('default_scope')
    if scope not in HOSTS or 'model' not in cfg:
        raise UsageError(
            f'The config needs a model and a default_scope of {HOSTS}; got '
            f'default_scope={scope!r} and {sorted(cfg)}'
        )
    models = importlib.import_module(f'{scope}.registry').MODELS
    settings = cfg.model.copy()
    if 'data_preprocessor' in cfg:  # in configs of mmpretrain, as Runner does
        settings.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    with DefaultScope.overwrite_default_scope(scope), config_errors():
        return models.build(settings)


def load_model(cfg: Config, checkpoint: str, device: str = 'cpu') -> BaseModel:
    """Build the model of a config and load its weights.

    Args:
        cfg: The config; its host library is registered.
        checkpoint: File of torch or safetensors.
        device: Device of the model.

    Returns:
        The model in eval mode. A segmentor predicts whole images, not windows.

    Raises:
        UsageError: See :func:`build_model` and :func:`load_weights`.
    """
    model = build_model(cfg)
    load_weights(model, checkpoint)
    if hasattr(model, 'test_cfg') and (model.test_cfg or {}).get('mode') == 'slide':
        model.test_cfg.mode = 'whole'
    return model.to(device).eval()


def load_weights(
    model: nn.Module, checkpoint: str, allow_unexpected: bool = False
) -> None:
    """Load the weights of a checkpoint, which must fit the model.

    Args:
        model: Model of mmdet, mmseg or mmpretrain.
        checkpoint: The file, of torch or safetensors.
        allow_unexpected: Ignore weights that the model does not have.

    Raises:
        UsageError: The file is missing, damaged or no checkpoint, or does not fit;
            lists the missing and unexpected keys and those of another size.
    """
    state = read_weights(checkpoint)
    state = {name.removeprefix('module.'): x for name, x in state.items()}
    if mismatch := load_state_dict(model, state, allow_unexpected):
        raise UsageError(
            f'checkpoint: {checkpoint} does not fit the configuration; {mismatch}'
        )
