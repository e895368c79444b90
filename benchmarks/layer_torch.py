"""The works of `layers.py` in PyTorch, eager, with parameters of its own: forward, and backward to the same leaves.

Images are channels first by shape and channels last in memory, which is how PyTorch is fastest on the CPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

INSTALLED = importlib.util.find_spec("torch") is not None


def image(values: np.ndarray) -> Any:
    """A batch of images `[batch, height, width, channels]` as PyTorch takes them."""
    import torch

    return torch.from_numpy(values.copy()).permute(0, 3, 1, 2)


def sequence(values: np.ndarray) -> Any:
    """Any other array."""
    import torch

    return torch.from_numpy(values.copy())


def modules() -> dict[str, Callable[..., Any]]:
    """Name of a work -> a function of its inputs; made with parameters where there are any."""
    import torch
    from torch import nn
    from torch.nn import functional as f

    def last(module: Any) -> Any:
        return module.to(memory_format=torch.channels_last)

    def attend(*heads: Any) -> Any:
        return f.scaled_dot_product_attention(*(x.transpose(1, 2) for x in heads)).transpose(1, 2)

    def self_attention() -> Any:
        module = nn.MultiheadAttention(512, 8, batch_first=True)
        return Call(module, lambda x: module(x, x, x, need_weights=False)[0])

    def recurrent(module: Any) -> Any:
        return Call(module, lambda x: module(x)[0])

    class Call(nn.Module):  # type: ignore[misc]
        def __init__(self, module: Any, call: Callable[..., Any]) -> None:
            super().__init__()
            self.module, self.call = module, call

        def forward(self, *inputs: Any) -> Any:
            return self.call(*inputs)

    made: dict[str, Callable[[], Any]] = {
        "dense": lambda: nn.Linear(784, 512),
        "embedding": lambda: nn.Embedding(10_000, 256),
        "conv": lambda: last(nn.Conv2d(64, 64, 3, padding=1)),
        "depthwise_conv": lambda: last(nn.Conv2d(64, 64, 3, padding=1, groups=64)),
        "conv_transpose": lambda: last(nn.ConvTranspose2d(64, 64, 3, stride=2, padding=1, output_padding=1)),
        "max_pool": lambda: nn.MaxPool2d(2),
        "avg_pool": lambda: nn.AvgPool2d(2),
        "lp_pool": lambda: nn.LPPool2d(2, 2),
        "global_avg_pool": lambda: lambda x: x.mean((2, 3)),
        "batch_norm": lambda: nn.BatchNorm2d(64),
        "layer_norm": lambda: nn.LayerNorm(512),
        "group_norm": lambda: nn.GroupNorm(8, 64),
        "rms_norm": lambda: nn.RMSNorm(512),
        "dropout": lambda: nn.Dropout(0.5),
        "lstm": lambda: recurrent(nn.LSTM(256, 256, batch_first=True)),
        "gru": lambda: recurrent(nn.GRU(256, 256, batch_first=True)),
        "attention": lambda: attend,
        "multi_head_attention": self_attention,
        "resize": lambda: lambda x: f.interpolate(x, (112, 112), mode="bilinear"),
        "cross_entropy": lambda: f.cross_entropy,
        "gelu": lambda: nn.GELU(),
        "softmax": lambda: nn.Softmax(-1),
    }
    return made


def torch_step(name: str, arrays: tuple[np.ndarray, ...]) -> Callable[[], Any] | None:
    """`step()`: value and gradients of a work, or None where PyTorch has no such layer."""
    import torch

    make = modules().get(name)
    if make is None:
        return None
    call = make()
    given = [(image if array.ndim == 4 and name != "attention" else sequence)(array) for array in arrays]
    if name == "cross_entropy":
        given[1] = given[1].long()
    leaves = [x.requires_grad_() for x in given if x.is_floating_point()]
    leaves += list(call.parameters()) if isinstance(call, torch.nn.Module) else []
    output = call(*given)
    cotangent = torch.randn_like(output)  # of the output's layout in memory

    def step() -> Any:
        return torch.autograd.grad(call(*given), leaves, cotangent)

    return step
