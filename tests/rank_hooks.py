"""Hooks and a metric for training runs that tests start as commands."""

import os
import resource
import signal
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, METRICS


@HOOKS.register_module()
class KeepGradients(Hook):
    """Save the gradients of every step."""

    def before_train(self, runner):
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model

        def keep(*_):
            path = Path(runner.work_dir, f'gradients_{runner.iter}_{get_rank()}.pth')
            learned = (x for x in model.named_parameters() if x[1].requires_grad)
            torch.save({name: x.grad for name, x in learned}, path)

        runner.optim_wrapper.optimizer.register_step_pre_hook(keep)


@HOOKS.register_module()
class EvenNoise(Hook):
    """Replace noise by constants, which do not depend on the images of a process."""

    def before_train(self, runner):
        torch.rand_like = lambda x: torch.full_like(x, 0.6)
        torch.randint_like = lambda x, *_, dtype=None, **__: torch.ones_like(
            x, dtype=dtype
        )


@HOOKS.register_module()
class Die(Hook):
    """Kill the process of a rank in an iteration."""

    def __init__(self, iteration, rank=0):
        self.iteration, self.rank = iteration, rank

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if (runner.iter, get_rank()) == (self.iteration, self.rank):
            Path(runner.work_dir, 'died').touch()
            os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class DieWhileSaving(Hook):
    """Let the kernel kill the process in the middle of the second checkpoint."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


@METRICS.register_module()
class CountImages(BaseMetric):
    """Count the results and the images that they are of."""

    def process(self, data_batch, data_samples):
        self.results += [sample['img_path'] for sample in data_samples]

    def compute_metrics(self, results):
        return dict(results=len(results), images=len(set(results)))
