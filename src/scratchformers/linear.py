"""Linear layers by the faster of the two matrix libraries that torch carries for the CPU.

torch multiplies float32 by Intel's MKL, which leaves the wide registers of AMD's processors unused and so half of their
speed. oneDNN, by which torch multiplies bfloat16, uses them. Where it is the faster one, products of some size in
float32 are its own here, forward and backward; all others are torch's. `benchmarks/linear.py` measures both.
"""

import os
import platform
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad

CHOICE = "SCRATCHFORMERS_ONEDNN"  # 1 or 0 in the environment: with oneDNN or without, whatever the processor
SMALL = 2**20  # multiplications; below, oneDNN's 10 microseconds a call are more than it saves
FEW = 32  # rows
PLAIN = {Tensor, nn.Parameter}  # what is more than that may multiply in a way of its own: quantised, shared out
AMD, DESCRIBED = "AuthenticAMD", "/proc/cpuinfo"


def _amd() -> bool:
    """An AMD processor, as Linux or Windows describes it."""
    try:
        with open(DESCRIBED, encoding="utf-8") as file:
            return AMD in file.read(4096)
    except FileNotFoundError:
        return AMD in platform.processor()


def _chosen() -> bool:
    """oneDNN is there, and asked for or known to be faster: measured on one of AMD's with AVX-512 (Zen 5)."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    wish = os.environ.get(CHOICE)
    return wish != "0" if wish else torch.backends.cpu.get_cpu_capability() == "AVX512" and _amd()


ONEDNN = _chosen()


def linear(
    x: Float[Tensor, "*n d"], weight: Float[Tensor, "out d"], bias: Float[Tensor, "out"] | None = None
) -> Float[Tensor, "*n out"]:
    """x weight' + bias, as `torch.nn.functional.linear`, whose errors it gives."""
    if not (ONEDNN and _suits(x, weight, bias)):
        return F.linear(x, weight, bias)
    if torch.compiler.is_compiling():
        return compiled(x, weight, bias)
    learns = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (x, weight, bias))
    return _OneDNN.apply(x, weight, bias) if learns else _product(x, weight, bias)


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN can multiply these, and is worth asking. It knows no derivatives forward, and takes a bias for one
    number a column, side by side, whatever it is."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # for where there is no such operator
        return False
    if torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return False  # torch.func's, which while they are compiled take no operator of ours
    if x.ndim < 2 or weight.ndim != 2 or x.shape[-1] != weight.shape[-1] or x.numel() * len(weight) < SMALL:
        return False
    third = weight if bias is None else bias
    same = x.dtype == weight.dtype == third.dtype == torch.float32 and {type(x), type(weight), type(third)} <= PLAIN
    same = same and x.device == weight.device == third.device == torch.device("cpu")
    same = same and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))
    dense = same and (weight.is_contiguous() or weight.t().is_contiguous())  # parts of one take 100 times as long
    return dense and forward_ad._current_level < 0 and not torch.is_autocast_enabled("cpu")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN is faster where the first matrix is the longer one: a few rows are taken as the columns of the other."""
    if x.numel() > FEW * x.shape[-1] or not weight.is_contiguous():
        return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    columns = torch.ops.mkldnn._linear_pointwise.default(weight, x.flatten(0, -2).contiguous(), None, "none", [], "")
    y = columns.t().contiguous().view(*x.shape[:-1], len(weight))
    return y if bias is None else y.add_(bias)


class _OneDNN(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        (x, weight, _), (to_x, to_weight, *_) = inputs, ctx.needs_input_grad
        ctx.save_for_backward(x if to_weight else None, weight if to_x else None)  # as torch: no more than is needed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # pyrefly: ignore
        return _gradients(ctx, grad, linear)


def _gradients(
    ctx: Any, grad: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    to_x, to_weight, to_bias, *_ = ctx.needs_input_grad
    rows = grad.flatten(0, -2)
    return (
        multiply(grad, weight.t()) if to_x else None,
        multiply(rows.t(), x.flatten(0, -2).t()) if to_weight else None,
        rows.sum(0) if to_bias else None,
    )


@torch.library.custom_op("scratchformers::linear", mutates_args=())
def compiled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same as a compiler has it, which looks into no operator of oneDNN's and takes this one for a whole."""
    return _product(x, weight, bias)


@compiled.register_fake
def _shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


compiled.register_autograd(
    lambda ctx, grad: _gradients(ctx, grad, lambda x, weight: compiled(x, weight, None)),
    setup_context=_OneDNN.setup_context,
)


class Linear(nn.Linear):
    """torch's, by `linear`."""

    def forward(self, input: Float[Tensor, "*n d"]) -> Float[Tensor, "*n out"]:
        return linear(input, self.weight, self.bias)
