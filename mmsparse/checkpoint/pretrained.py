"""Check that the file of a ``Pretrained`` init_cfg fills its module."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from mmengine.logging import MMLogger, print_log
from mmengine.model import PretrainedInit
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmsparse._logging import log_level
from mmsparse.checkpoint.coverage import (
    Coverage,
    Diagnosis,
    LoadObserver,
    Recognize,
    diagnose,
)
from mmsparse.errors import UsageError

# Names of weights in mmengine, none of them for backbones of mmsparse.
ZOOS = ('torchvision://', 'modelzoo://', 'open-mmlab://', 'openmmlab://', 'mmcls://')
NO_PREFIX = 'is not in the pretrained model'  # mmengine's assertion


def deprecated_pretrained(pretrained: str, init_cfg: Any) -> dict[str, str]:
    """Return the ``init_cfg`` of ``pretrained``, which OpenMMLab has deprecated.

    A warning is logged. UsageError is raised for weights of another backbone, as they
    remain from a base config, or if ``init_cfg`` is also given.
    """
    what = f'pretrained={pretrained!r}'
    if init_cfg is not None:
        raise UsageError(f'{what} and init_cfg={init_cfg!r}: set init_cfg only.')
    if pretrained.startswith(ZOOS):
        raise UsageError(
            f'{what} are weights of another backbone, perhaps from a base config; set '
            f'it to None (in mmseg model.pretrained=None), and init_cfg for weights.'
        )
    new = dict(type='Pretrained', checkpoint=pretrained)
    print_log(f'{what} is deprecated; set init_cfg={new}.', 'current', logging.WARNING)
    return new


def observe_pretrained(
    module: nn.Module, recognize: Recognize, setting: str = 'init_cfg'
) -> LoadObserver | None:
    """Report what the module loads from the file of its ``Pretrained`` init_cfg.

    One line is logged. UsageError is raised when it loads nearly nothing, or an
    official file; it has the way out.

    Args:
        module: The module.
        recognize: Describes official weights by their keys.
        setting: Path of the setting, for messages.

    Returns:
        The observer; None without such a setting, or with several.
    """
    cfg = _pretrained(module)
    if cfg is None:
        return None
    return LoadObserver(module, partial(_report, module, cfg, recognize, setting))


@contextmanager
def checked_pretrained(module: nn.Module, recognize: Recognize) -> Iterator[None]:
    """Observe ``init_weights`` of mmengine; also raise for a prefix without keys.

    See :func:`observe_pretrained`.
    """
    observer = observe_pretrained(module, recognize)
    try:
        yield
    except AssertionError as error:
        if observer is None or NO_PREFIX not in str(error):
            raise
        nothing = Coverage.none_of(module)
        raise _error(
            module, _pretrained(module), recognize, 'init_cfg', nothing
        ) from error
    finally:
        if observer is not None:
            observer.remove()


def _pretrained(module: nn.Module) -> Mapping[str, Any] | None:
    init_cfg = getattr(module, 'init_cfg', None) or ()
    cfgs = [
        cfg
        for cfg in ([init_cfg] if isinstance(init_cfg, Mapping) else init_cfg)
        if cfg.get('type') in ('Pretrained', PretrainedInit) and cfg.get('checkpoint')
    ]
    return cfgs[0] if len(cfgs) == 1 else None


def _report(
    module: nn.Module,
    cfg: Mapping[str, Any],
    recognize: Recognize,
    setting: str,
    coverage: Coverage,
    weights: Mapping[str, Any],
) -> None:
    if coverage.is_few(official=recognize(weights) is not None):
        raise _error(module, cfg, recognize, setting, coverage)
    owner, file = type(module).__name__, cfg['checkpoint']
    print_log(f'{setting}: {coverage.describe(owner, file)}', 'current')


def _error(
    module: nn.Module,
    cfg: Mapping[str, Any],
    recognize: Recognize,
    setting: str,
    coverage: Coverage,
) -> UsageError:
    file, prefix = cfg['checkpoint'], cfg.get('prefix')
    with log_level(MMLogger.get_current_instance(), logging.WARNING):
        checkpoint = CheckpointLoader.load_checkpoint(file, map_location='cpu')
    place = '' if prefix is None else f' under prefix={prefix!r}'
    try:
        diagnosis = diagnose(checkpoint, coverage.names, recognize)
    except ValueError as error:
        return UsageError(f'{setting}: {file}: {error}')
    return diagnosis.error(
        f'{setting}: {coverage.loaded} of {len(coverage.names)} weights of '
        f'{type(module).__name__} are in {file}{place}',
        file,
        _way_out(diagnosis, checkpoint, prefix, coverage),
    )


def _way_out(
    diagnosis: Diagnosis,
    checkpoint: Mapping[str, Any],
    prefix: str | None,
    coverage: Coverage,
) -> str:
    found = diagnosis.prefix
    if found is None:
        return f'its keys begin with {diagnosis.keys}'
    # mmengine appends a dot, and without a prefix removes that of parallel models.
    read = ('', 'module.') if prefix is None else (prefix.rstrip('.') + '.',)
    if found not in read:
        bare = found in ('', 'module.')
        return f'remove prefix={prefix!r}' if bare else f'set prefix={found!r}'
    top = checkpoint.get('state_dict', checkpoint)
    if not any(isinstance(value, Tensor) for value in top.values()):
        return (
            f"mmengine finds weights at the top or under 'state_dict'; got {list(top)}"
        )
    sizes = [text for name, text in coverage.missing.items() if text != name]
    return f'other sizes, as of another arch: {", ".join(sizes[:3])}'
