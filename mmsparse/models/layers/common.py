"""Parts of every layer: projections and argument checks."""

from collections.abc import Collection

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from mmsparse.ops._depthwise import depthwise_conv2d
from mmsparse.ops._linear import linear_map


def project(linear: nn.Module, x: Tensor) -> Tensor:
    """Project the channels of every token, by a convolution where that is faster.

    Only the weights of a plain ``nn.Linear`` are used directly. One that a library has
    replaced, wrapped, hooked or quantized (LoRA, pruning, torchao) is called.

    Args:
        linear: Linear layer, or what is in its place.
        x: Feature map, (B, H, W, C).

    Returns:
        (B, H, W, C').
    """
    if is_plain_linear(linear):
        return linear_map(x, linear.weight, linear.bias)
    return linear(x)


def is_plain_linear(module: nn.Module) -> bool:
    """Return whether calling a module is no more than applying weight and bias."""
    return is_plain(module, nn.Linear)


def is_plain(module: nn.Module, layer: type[nn.Module]) -> bool:
    """Return whether a module is a layer that nobody has hooked or reparametrized.

    Args:
        module: Layer with weight and bias, or what is in its place.
        layer: Type of the layer.

    Returns:
        Whether it is exactly of this type, its weight a plain tensor.
    """
    return (
        type(module) is layer
        and type(module.weight) in (nn.Parameter, Tensor)
        and 'forward' not in module.__dict__  # torch 2.6 does not compile vars()
        and not (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or _has_global_hook()
        )
    )


def _has_global_hook() -> bool:
    """Return whether a hook runs for all modules; torch 2.1 has no function for it."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution with bias, stride 1 and same padding.

    Args:
        channels: C of the feature map.
        kernel_size: Odd kernel size.
        residual: Whether the input is added to the output.
    """

    def __init__(self, channels: int, kernel_size: int, residual: bool = False) -> None:
        super().__init__(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels
        )
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        return depthwise_conv2d(x, self.weight, self.bias, self.residual)


def check_heads(channels: int, num_heads: int, name: str = 'in_channels') -> None:
    """Raise ValueError unless the number of channels is divisible by ``num_heads``.

    Args:
        channels: Number of channels.
        num_heads: Number of heads.
        name: Argument that holds the number of channels, for the message.

    Raises:
        ValueError: It is not.
    """
    if num_heads < 1 or channels % num_heads:
        raise ValueError(
            f'{name} must be divisible by num_heads; got {name}={channels} and '
            f'num_heads={num_heads}.'
        )


def check_positive(name: str, value: int) -> None:
    """Raise ValueError unless an argument is at least 1.

    Args:
        name: Name of the argument.
        value: Value given.

    Raises:
        ValueError: It is less.
    """
    if value < 1:
        raise ValueError(f'{name} must be at least 1; got {value}.')


def check_min_size(x: Tensor, minimum: int, name: str) -> None:
    """Raise ValueError unless a feature map is as large as an argument of its layer.

    Args:
        x: Feature map, (B, C, H, W).
        minimum: Least height and width.
        name: Argument that holds it, for the message.

    Raises:
        ValueError: The height or the width is less.
    """
    size = x.shape[-2:]
    if min(size) < minimum:
        raise ValueError(
            f'x must have a height and width of at least {name}={minimum}; got '
            f'{size[0]}x{size[1]}. Use a larger image or a smaller {name}.'
        )


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise ValueError unless an argument is one of the choices.

    Args:
        name: Name of the argument.
        value: Value given.
        choices: Allowed values.

    Raises:
        ValueError: It is not.
    """
    if value not in choices:
        raise ValueError(f'{name} must be one of {sorted(choices)}; got {value!r}.')
