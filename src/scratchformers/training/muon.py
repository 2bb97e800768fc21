"""Muon (Jordan et al. 2024): the momentum of a matrix, made orthogonal, is the step it takes. AdamW for the rest."""

import re
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scratchformers.linear import linear
from scratchformers.training import processes

MOMENTUM, ITERATIONS, LEAST = 0.95, 5, 1e-7
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic: steepest at 0, so that few iterations do
SCALE = 0.2  # root mean square of an update as AdamW's are (Liu et al. 2025, section 2.2): both learn at one rate
MATRIX = re.compile(r"(?:.*\.)?blocks\.\d+\..*\.(\w+)\.weight")
FUSED = {"kv": 2}  # keys and values are two matrices that lie in one


def matrices(model: nn.Module) -> dict[str, int]:
    """The parameters that Muon is for, the matrices within blocks, by name, and how many each is stacked of. An
    adapter's two are none: what is multiplied by, and should move orthogonally, is their product."""
    named = ((name, MATRIX.fullmatch(name), parameter.ndim) for name, parameter in model.named_parameters())
    return {name: FUSED.get(found[1], 1) for name, found, axes in named if found and axes == 2}


def orthogonal(x: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """About U V' of each matrix U S V', by Newton and Schulz's iteration: the singular values come to lie within 0.7
    and 1.2, but for those that are 0, or too small beside the others. In float32 at least, on a GPU in bfloat16."""
    return torch.stack([_orthogonal(each) for each in x])


def _orthogonal(x: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Products are linear layers', and so as fast: linear(a, b) is a b'."""
    wide = len(x) <= x.shape[1]
    y = (x if wide else x.t()).to(torch.bfloat16 if x.is_cuda else torch.promote_types(x.dtype, torch.float32))
    y = (y / y.norm().clamp(min=LEAST)).contiguous()
    first, third, fifth = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = linear(y, y)
        factor = fifth * gram  # symmetric, as gram is
        factor.diagonal().add_(third)
        factor = linear(gram, factor)
        factor.diagonal().add_(first)
        y = linear(factor, y.t())
    return (y if wide else y.t()).to(x.dtype)


class Muon(torch.optim.AdamW):
    """Of a group whose `parts` is not 0 each parameter is so many matrices, one below the other."""

    def __init__(self, groups: list[dict[str, Any]], **adamw: Any):
        super().__init__(groups, **adamw)
        self._step_supports_amp_scaling = False  # the scaler leaves out a whole step, not AdamW's share of it

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyrefly: ignore (nothing here computes a loss again)
        own = [(p, p.grad, group) for group in self.param_groups if group["parts"] for p in group["params"]]
        for parameter, _, _ in own:
            parameter.grad = None  # so that AdamW passes it over
        super().step()
        for parameter, grad, group in own:
            parameter.grad = grad
            if grad is not None:
                self._move(parameter, grad, group)

    def _move(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        momentum = state.setdefault("momentum", torch.zeros_like(grad)).lerp_(grad, 1 - MOMENTUM)
        ahead = processes.whole(grad.lerp(momentum, MOMENTUM)).unflatten(0, (group["parts"], -1))  # Nesterov's
        size = SCALE * max(ahead.shape[1:]) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        update = processes.parted_like(parameter, orthogonal(ahead).flatten(0, 1))
        processes.local(parameter).add_(update, alpha=-group["lr"] * size)
