"""Write checkpoints completely, resume from undamaged ones, run no code of a file."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmsparse.checkpoint.coverage import SHOWN, Coverage, LoadObserver, diagnose
from mmsparse.checkpoint.mmengine import register_safe_loader
from mmsparse.checkpoint.pretrained import observe_pretrained
from mmsparse.checkpoint.state_dict import join_keys
from mmsparse.conversion.families import BACKBONE, recognize
from mmsparse.engine.checkpoints import WHOLE_FILE, last_whole_checkpoint
from mmsparse.errors import UsageError
from mmsparse.models.backbones.base import StagedBackbone
from mmsparse.registry import HOOKS


@HOOKS.register_module()
class SafeCheckpoints(Hook):
    """Make training safe against kills, full disks and wrong or untrusted checkpoints.

    - A local checkpoint is written completely or not at all.
    - Resuming without a file starts from the last undamaged checkpoint.
    - mmengine reads checkpoints in this process without running their code, from the
      time that the hook is built.
    - One line states how many weights come from the file of an ``init_cfg`` and of
      ``load_from``. A file that fits nearly nothing of a backbone is an error, and so
      is resuming from the checkpoint of another model.
    """

    priority = 'VERY_LOW'  # after hooks that copy the model or change the checkpoint

    def __init__(self) -> None:
        register_safe_loader()
        self._observers: list[LoadObserver] = []

    def before_run(self, runner: Runner) -> None:
        """Choose how checkpoints are written and read, and observe ``init_cfg``."""
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and _is_local(hook):
                hook.backend_args = dict(backend=WHOLE_FILE)
        # mmengine has no public setting for the checkpoint that load_or_resume reads.
        if runner._resume and runner._load_from is None:
            path = last_whole_checkpoint(runner.work_dir)
            runner._load_from = path and str(path)
        for name, module in _unwrap(runner.model).named_modules():
            if not isinstance(module, StagedBackbone):  # observes itself
                setting = '.'.join(filter(None, ('model', name, 'init_cfg')))
                self._observe(observe_pretrained(module, recognize, setting))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Observe what the model loads, which happens next."""
        self._stop_observing()
        model = _unwrap(runner.model)
        if is_model_wrapper(model):  # such as that of FSDP, with parts of the weights
            return
        file = str(runner._load_from or 'the checkpoint')
        report = partial(_report, type(model).__name__, file, checkpoint)
        if runner._resume:
            report = partial(_check_resumed, file)
        self._observe(LoadObserver(model, report))

    def before_train(self, runner: Runner) -> None:
        """Stop observing."""
        self._stop_observing()

    def _observe(self, observer: LoadObserver | None) -> None:
        if observer is not None:
            self._observers.append(observer)

    def _stop_observing(self) -> None:
        while self._observers:
            self._observers.pop().remove()


def _is_local(hook: CheckpointHook) -> bool:
    other = hook.backend_args or hook.file_client_args or '://' in str(hook.out_dir)
    return not other


def _unwrap(model: nn.Module) -> nn.Module:
    while isinstance(model, (BaseTTAModel, DistributedDataParallel)):
        model = model.module
    return model


def _check_resumed(file: str, coverage: Coverage, weights: Mapping[str, Any]) -> None:
    """Raise UsageError unless all weights of a resumed model were loaded."""
    if coverage.missing:
        raise UsageError(
            f'resume: {file} is of another model, without '
            f'{join_keys(list(coverage.missing.values()), SHOWN)}; resume with the '
            f'config of the training, or start a new one with load_from.'
        )


def _report(
    owner: str,
    file: str,
    checkpoint: dict[str, Any],
    coverage: Coverage,
    weights: Mapping[str, Any],
) -> None:
    """Log how much was loaded, or raise if it is nearly nothing of the backbone."""
    backbone = coverage.of_part(BACKBONE)
    if backbone.is_few(official=recognize(weights) is not None):
        raise _error(file, checkpoint, backbone)
    print_log(f'load_from: {coverage.describe(owner, file)}', 'current')


def _error(file: str, checkpoint: dict[str, Any], backbone: Coverage) -> UsageError:
    names = [name.removeprefix(BACKBONE) for name in backbone.names]
    try:
        diagnosis = diagnose(checkpoint, names, recognize)
    except ValueError as error:
        return UsageError(f'load_from: {file}: {error}')
    prefix = diagnosis.prefix
    if prefix is None:
        way_out = f'its keys begin with {diagnosis.keys}'
    elif prefix.removeprefix('module.') != BACKBONE:
        settings = dict(type='Pretrained', checkpoint=file, prefix=prefix)
        if not prefix:
            del settings['prefix']
        way_out = f'set model.backbone.init_cfg={settings} instead'
    else:
        sizes = [text for name, text in backbone.missing.items() if text != name]
        way_out = f'other sizes, as of another arch: {", ".join(sizes[:3])}'
    loaded = f'{backbone.loaded} of {len(names)} weights of the backbone'
    return diagnosis.error(f'load_from: {loaded} are in {file}', file, way_out)
