"""Blocks that keep of a forward only what they were given, and compute the rest once more when the gradient asks for it
(Chen et al. 2016): a little more time for most of the activations' memory."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

KERNELS = {  # which of them attention may choose, by torch's own switches
    SDPBackend.FLASH_ATTENTION: torch.backends.cuda.flash_sdp_enabled,
    SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.mem_efficient_sdp_enabled,
    SDPBackend.CUDNN_ATTENTION: torch.backends.cuda.cudnn_sdp_enabled,
    SDPBackend.MATH: torch.backends.cuda.math_sdp_enabled,
}


def blocks_of(model: nn.Module) -> list[Any]:
    """Every module in a list called `blocks`."""
    lists = [each for module in model.modules() if isinstance(each := getattr(module, "blocks", None), nn.ModuleList)]
    return [block for each in lists for block in each]


def checkpoint_blocks(model: nn.Module) -> int:
    """From now on every block does so, wherever gradients are computed; returns how many there are. Names in the state
    dict stay, and what is random is drawn alike both times."""
    blocks = blocks_of(model)
    for block in blocks:
        block.forward = partial(_again, block.forward)
    return len(blocks)


def _again(forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*given, **named)
    # A compiler keeps the kernels that it saw the first time.
    own: dict[str, Any] = {} if torch.compiler.is_compiling() else {"context_fn": _same_kernels}
    return checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=True, **own, **named)


def _same_kernels() -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
    """The second time attention chooses among the same kernels, also where only the forward was within a `with`."""
    allowed = [kernel for kernel, enabled in KERNELS.items() if enabled()]
    return contextlib.nullcontext(), sdpa_kernel(allowed)
