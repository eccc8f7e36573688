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
    describe,
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
    """A classifier with images, on a GPU under autocast to bfloat16.

    In bfloat16, many CPUs convolve channel by channel: too many calls for a profile.

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

    def _autocast(self) -> torch.autocast:
        kind = self.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=kind == 'cuda')

    def _forward(self, images: Tensor) -> Tensor:
        with torch.no_grad(), self._autocast():
            return self.model(images)

    def _train(self) -> None:
        with self._autocast():
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
    for measure in (
        _time_forward,
        _time_graph,
        _time_training,
        count_parameters,
        count_work,
    ):
        try:
            row |= measure(model)
        except Exception as error:  # noqa: BLE001 - the others have results
            row['failed'] = f'{measure.__name__}: {describe(error)}'
    yield row


def _time_forward(model: Classifier) -> Row:
    return _time_batches(model, {'forward': model.forward()})


def _time_graph(model: Classifier) -> Row:
    if model.device.type != 'cuda':
        return {}
    return _time_batches(model, {'CUDA graph': capture(model.forward())})


def _time_training(model: Classifier) -> Row:
    run = model.training()
    peak = peak_bytes(run, model.device) / 2**20
    return _time_batches(model, {'training': run}) | {MEMORY: peak}


def _time_batches(model: Classifier, runs: dict[str, Run]) -> Row:
    """Return milliseconds and images per second of runs that take turns."""
    row: Row = {}
    for name, found in time_in_turns(runs, model.device, model.seconds).items():
        if isinstance(found, Exception):
            raise found
        row[f'{name}, images/s'] = 1e3 * model.batch_size / found
        row[f'{name}, ms'] = found
    return row


def count_parameters(model: Classifier) -> Row:
    """Count the parameters, in millions."""
    parameters = sum(x.numel() for x in model.model.parameters())
    return {'parameters, M': parameters / 1e6}


def count_work(model: Classifier) -> Row:
    """Count MACs and activations of an image, as timm does.

    Args:
        model: The classifier.

    Returns:
        Columns. Activations are the outputs of convolutions and matrix products.
    """
    from mmsparse.analysis.flops import count_macs  # needs mmengine

    model.model.eval()
    image = model.draw(1)
    with torch.no_grad(), reference_only(), _Activations() as activations:
        model.model(image)
    macs = count_macs(partial(model.model, image))
    return {'GMACs': macs / 1e9, 'activations, M': activations.count / 1e6}


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
    run = model.forward(model.draw(1))
    yield _time_calls(model, 'eager', run, count)
    if model.device.type == 'cuda':
        yield _time_calls(model, 'CUDA graph', capture(run), count)


def _time_calls(model: Classifier, mode: str, run: Run, count: int) -> Row:
    run()
    times = [1e3 * wall_seconds(run, model.device) for _ in range(count)]
    return {
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
        row = _time_batches(model, {'compiled': run})
    finally:
        torch._dynamo.reset()
    yield {'model': model.name, 'first call, s': seconds} | row
