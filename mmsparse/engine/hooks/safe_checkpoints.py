"""Write checkpoints completely, resume from undamaged ones, run no code of a file."""

from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from mmsparse.checkpoint.mmengine import register_safe_loader
from mmsparse.engine.checkpoints import WHOLE_FILE, last_whole_checkpoint
from mmsparse.registry import HOOKS


@HOOKS.register_module()
class SafeCheckpoints(Hook):
    """Make training safe against kills, full disks and untrusted checkpoints.

    - A local checkpoint is written completely or not at all.
    - Resuming without a file starts from the last undamaged checkpoint.
    - mmengine reads checkpoints in this process without running their code, from the
      time that the hook is built.
    """

    def __init__(self) -> None:
        register_safe_loader()

    def before_run(self, runner: Runner) -> None:
        """Choose how checkpoints are written, and which one is resumed from."""
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and _is_local(hook):
                hook.backend_args = dict(backend=WHOLE_FILE)
        # mmengine has no public setting for the checkpoint that load_or_resume reads.
        if runner._resume and runner._load_from is None:
            path = last_whole_checkpoint(runner.work_dir)
            runner._load_from = path and str(path)


def _is_local(hook: CheckpointHook) -> bool:
    other = hook.backend_args or hook.file_client_args or '://' in str(hook.out_dir)
    return not other
