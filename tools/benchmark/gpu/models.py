"""Sections: whole classifiers, mmsparse's and those of timm."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import islice
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmark.events import (
    MEMORY,
    Run,
    capture,
    synchronize,
    time_in_turns,
    wall_seconds,
)
from benchmark.gpu.job import Job, Step
from benchmark.gpu.results import Row
from benchmark.memory import peak_bytes
from mmsparse.ops import reference_only

# In the order of worth; those with an underscore are timm's.
MODELS = (
    'biformer-small',
    'swin_tiny_patch4_window7_224',
    'dat-pp-tiny',
    'dat-tiny',
    'shunted-small',
    'convnext_tiny',
    'swin_small_patch4_window7_224',
    'convnext_small',
    'biformer-tiny',
)
SMOKE_MODELS = ('biformer-pico', 'convnext_atto')
LONGEST = 8  # kernels that are listed
LATENCIES = 60
COMPILE_SECONDS = 75
PRODUCTS = ('convolution', 'mm', 'addmm', 'bmm', 'baddbmm')


class Classifier:
    """A classifier with images, under autocast.

    Args:
        name: Of a model of mmsparse or timm.
        job: Its device, and whether sizes are the smallest.
    """

    def __init__(self, name: str, job: Job) -> None:
        self.device = job.device
        self.seconds = 4 * job.seconds  # of the rounds per run
        self.name = name
        self.model = _build(name, job.device)
        self.batch_size, self.pixels = (2, 64) if job.smoke else (128, 224)
        self.images = self.draw(self.batch_size)
        self.labels = torch.arange(self.batch_size, device=self.device)

    def draw(self, count: int) -> Tensor:
        """Draw images, (count, 3, H, W)."""
        images = torch.randn(count, 3, self.pixels, self.pixels, device=self.device)
        return images.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor | None = None) -> Run:
        """Return the forward pass without gradients, in evaluation mode."""
        self.model.eval()
        return partial(self._forward, self.images if images is None else images)

    def training(self) -> Run:
        """Return a training step without the optimizer's, in training mode."""
        self.model.train()
        return self._train

    def _forward(self, images: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16):
            return self.model(images)

    def _train(self) -> None:
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.model.zero_grad(set_to_none=True)


@cache
def _build(name: str, device: torch.device) -> nn.Module:
    """Build a model with random weights; it stays for the next sections."""
    torch.manual_seed(0)
    # Imported here: mmsparse's need mmengine, and either may be missing.
    if '-' in name:
        from mmsparse import create_model
    else:
        from timm import create_model
    model = create_model(name).to(device)
    return model.to(memory_format=torch.channels_last)


def _steps(
    job: Job, run: Callable[[Classifier], Iterator[Row]], seconds: float | None = None
) -> Iterator[Step]:
    for name in SMOKE_MODELS if job.smoke else MODELS:
        yield Step(name, lambda name=name: run(Classifier(name, job)), seconds)


def time_models(job: Job) -> Iterator[Step]:
    """Time forward passes and training steps of all models.

    Args:
        job: Runs the steps.

    Yields:
        A step for every model.
    """
    yield from _steps(job, _time_model)


def _time_model(model: Classifier) -> Iterator[Row]:
    row: Row = {'model': model.name, 'batch': model.batch_size, 'pixels': model.pixels}
    times = _times(model, _with_graph('forward', model.forward(), model.device))
    times |= _times(model, {'training': model.training()})
    for name, milliseconds in times.items():
        row[f'{name}, images/s'] = 1e3 * model.batch_size / milliseconds
        row[f'{name}, ms'] = milliseconds
    row[MEMORY] = peak_bytes(model.training(), model.device) / 2**20
    yield row | count_work(model)


def _with_graph(name: str, run: Run, device: torch.device) -> dict[str, Run]:
    """Return a run and, on a GPU, its CUDA graph."""
    return {name: run} | ({'CUDA graph': capture(run)} if device.type == 'cuda' else {})


def _times(model: Classifier, runs: dict[str, Run]) -> dict[str, float]:
    results = time_in_turns(runs, model.device, model.seconds)
    for result in results.values():
        if isinstance(result, Exception):
            raise result
    return results


def count_work(model: Classifier) -> Row:
    """Count parameters, MACs and activations of an image, as timm does.

    Args:
        model: The classifier.

    Returns:
        Columns. MACs need mmengine. Activations are the outputs of convolutions and
        matrix products.
    """
    parameters = sum(x.numel() for x in model.model.parameters())
    counted: Row = {'parameters, M': parameters / 1e6}
    model.model.eval()
    with torch.no_grad(), reference_only(), _Activations() as activations:
        model.model(model.draw(1))
    counted['activations, M'] = activations.count / 1e6
    try:
        from mmsparse.analysis.flops import count_macs
    except ModuleNotFoundError:
        return counted
    macs = count_macs(partial(model.model, model.draw(1)))
    return counted | {'GMACs': macs / 1e9}


class _Activations(TorchDispatchMode):
    """Counts the outputs of convolutions and matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in PRODUCTS:
            self.count += out.numel()
        return out


def time_latency(job: Job) -> Iterator[Step]:
    """Time the forward pass of one image, eager and as a CUDA graph.

    Args:
        job: Runs the steps.

    Yields:
        A step for every model.
    """
    yield from _steps(job, partial(_time_latency, count=5 if job.smoke else LATENCIES))


def _time_latency(model: Classifier, count: int) -> Iterator[Row]:
    forward = model.forward(model.draw(1))
    for mode, run in _with_graph('eager', forward, model.device).items():
        run()
        times = [1e3 * wall_seconds(run, model.device) for _ in range(count)]
        yield {
            'model': model.name,
            'mode': mode,
            'p50, ms': median(times),
            'p90, ms': quantiles(times, n=10)[-1],
        }


def count_launches(job: Job) -> Iterator[Step]:
    """Count the kernels of forward passes and training steps.

    Args:
        job: Runs the steps.

    Yields:
        A step for every model.
    """
    yield from _steps(job, _count_launches)


def _count_launches(model: Classifier) -> Iterator[Row]:
    for name, prepare in (('forward', model.forward), ('training', model.training)):
        run = prepare()
        events = _profile(model, name, run)
        yield {
            'model': model.name,
            'pass': name,
            'kernels': sum(count for _, count, _ in events),
            'busy, ms': sum(milliseconds for *_, milliseconds in events),
            'pass, ms': 1e3 * wall_seconds(run, model.device),
        }


def list_kernels(job: Job) -> Iterator[Step]:
    """List the kernels of a training step that take the most time.

    Args:
        job: Runs the steps.

    Yields:
        A step for every model.
    """
    yield from _steps(job, _list_kernels)


def _list_kernels(model: Classifier) -> Iterator[Row]:
    events = _profile(model, 'training', model.training())
    for kernel, count, milliseconds in sorted(events, key=lambda x: -x[2])[:LONGEST]:
        yield {
            'model': model.name,
            'kernel': kernel[:120],
            'calls': count,
            'ms': milliseconds,
        }


_profiles: dict[tuple[str, str], list[tuple[str, int, float]]] = {}


def _profile(model: Classifier, name: str, run: Run) -> list[tuple[str, int, float]]:
    """Return name, calls and milliseconds of all kernels; on a CPU, of operators."""
    key = (model.name, name)
    if key not in _profiles:
        on_gpu = model.device.type == 'cuda'
        wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
        activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
        run()
        synchronize(model.device)
        with profile(activities=[activity]) as profiler:
            run()
            synchronize(model.device)
        column = 'self_device_time_total' if on_gpu else 'self_cpu_time_total'
        _profiles[key] = [
            (event.key, event.count, getattr(event, column) / 1e3)
            for event in profiler.key_averages()
            if event.device_type == wanted
        ]
    return _profiles[key]


def time_compiled(job: Job) -> Iterator[Step]:
    """Time the forward pass of compiled models.

    Args:
        job: Runs the steps.

    Yields:
        A step for every model, with a time limit.
    """
    steps = _steps(job, _time_compiled, COMPILE_SECONDS)
    yield from islice(steps, 1) if job.smoke else steps


def _time_compiled(model: Classifier) -> Iterator[Row]:
    # On a CPU a trial: its code generation takes minutes.
    backend = 'inductor' if model.device.type == 'cuda' else 'eager'
    model.model = torch.compile(model.model, backend=backend)
    run = model.forward()
    try:
        seconds = wall_seconds(run, model.device)
        (milliseconds,) = _times(model, {'compiled': run}).values()
    finally:
        torch._dynamo.reset()
    yield {
        'model': model.name,
        'first call, s': seconds,
        'forward, ms': milliseconds,
        'forward, images/s': 1e3 * model.batch_size / milliseconds,
    }
