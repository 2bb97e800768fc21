"""What a model does within: every head's attention, and the hidden states between blocks.

Outside of `record` nothing is different; inside, attention is written out instead of fused, so that its weights exist.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from scratchformers import ragged
from scratchformers.nn import Attention, Block, Mask, attend


class Recorded(Mapping[str, Tensor]):
    """Tensors by their module's path; a whole number counts in order of execution, a negative one from the end."""

    def __init__(self):
        self._found: dict[str, Tensor] = {}

    def __getitem__(self, key: str | int) -> Tensor:
        names = list(self._found)
        if isinstance(key, int) and -len(names) <= key < len(names):
            return self._found[names[key]]
        if key not in self._found:
            held = f"{len(names)} of them: {', '.join(names)}" if names else "nothing, for the model was not called"
            raise (IndexError if isinstance(key, int) else KeyError)(f"{key!r} is not recorded; there is {held}.")
        return self._found[str(key)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


class Record:
    """`attention`: (b, heads, t, s) of every Attention, a row for each query. `hidden`: (b, t, d), the output of every
    Block and of every LayerNorm outside of them, and as "blocks.input" what the first of `blocks` got. At padding,
    queries and states are computed but mean nothing. Where gradients are on, they flow through."""

    def __init__(self):
        self.attention, self.hidden = Recorded(), Recorded()


@contextlib.contextmanager
def record(model: nn.Module) -> Iterator[Record]:
    """`with record(model) as r:` the model's calls, of which the last is kept; a step of decoding is a call too.

    Raises ValueError for a compiled model, one that is recorded already, and one whose attention is not ours.
    """
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, Block)}
    attentions = {name: module for name, module in model.named_modules() if isinstance(module, Attention)}
    _check(model, attentions)
    found, undo, token = Record(), contextlib.ExitStack(), ragged.padded.set(True)

    def keep(name: str, state: Any) -> None:
        found.hidden._found[name] = state

    try:
        for name, attention in attentions.items():
            attention.attend = partial(_attend, found.attention._found, name)
            undo.callback(setattr, attention, "attend", attend)
        for name, block in blocks.items():
            stack = name.rpartition(".")[0]
            if name.endswith(".0"):
                hook = block.register_forward_pre_hook(lambda _, given, at=f"{stack}.input": keep(at, given[0]))
                undo.callback(hook.remove)
            undo.callback(block.register_forward_hook(lambda *call, at=name: keep(at, call[-1])).remove)
        for name, module in model.named_modules():
            if isinstance(module, nn.LayerNorm) and not any(name.startswith(f"{path}.") for path in blocks):
                undo.callback(module.register_forward_hook(lambda *call, at=name: keep(at, call[-1])).remove)
        yield found
    finally:
        undo.close()
        ragged.padded.reset(token)


def _check(model: nn.Module, attentions: dict[str, Attention]) -> None:
    compiled = [m for m in model.modules() if hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None)]
    if compiled:
        raise ValueError("The model is compiled, and nothing can be seen within: record the one it was made of.")
    if not attentions:
        raise ValueError(f"{type(model).__name__} has no Attention of scratchformers: there is nothing to record.")
    for name, attention in attentions.items():
        if attention.attend is not attend:
            raise ValueError(f"{name} attends in a way of its own, or is being recorded already: leave that first.")


def _attend(
    found: dict[str, Tensor],
    name: str,
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h s e"],
    v: Float[Tensor, "b h s e"],
    mask: Mask = None,
    dropout: float = 0.0,
) -> Float[Tensor, "b h t e"]:
    """`nn.attend` written out; what is kept are the weights before dropout."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if isinstance(mask, str):  # CAUSAL
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is None:
        weights = scores.softmax(-1)
    else:
        some = mask.any(-1, keepdim=True)
        weights = scores.masked_fill(~(mask | ~some), -torch.inf).softmax(-1).masked_fill(~some, 0.0)
    found[name] = weights
    return F.dropout(weights, dropout) @ v
