"""The vocabulary every model here is written in.

Axes: b batch, t queries (target), s keys (source), h heads, e width of a head, d model width, n patches.
Masks are boolean and True means "may attend"; `keep` (b, s) is True where a token is real.
Models differ by the values they hand in (an activation, a norm, a mask), never by flags read in here.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scratchformers.linear import Linear, linear

gelu = F.gelu  # x Phi(x), exact: by the error function
gelu_tanh = partial(F.gelu, approximate="tanh")  # its older approximation; the two differ by up to 5e-4


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), the coarser approximation (Hendrycks and Gimpel 2016, section 2)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu, "relu": F.relu, "silu": F.silu}

CAUSAL = "causal"  # the mask of every token seeing itself and those before it, nothing padded, nothing cached
Mask = Any  # None: see everything; CAUSAL; booleans (b or 1, 1, t or 1, s); or an object that attends by itself
Heads = Float[Tensor, "b h s e"]


def attend(q: Float[Tensor, "_ h t e"], k: Heads, v: Heads, mask: Mask = None, dropout: float = 0.0) -> Tensor:
    """softmax(q k' / sqrt(e)) v (Vaswani et al. 2017, equation 1), as (b, h, t, e). A query that may attend to nothing
    gives 0: it sees everything and its output is zeroed, for a softmax over nothing makes all gradients NaN."""
    if mask is None or (isinstance(mask, str) and mask == CAUSAL):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=mask is not None)
    if not isinstance(mask, Tensor):
        return mask.attend(q, k, v, **({"dropout": dropout} if dropout else {}))
    some = mask.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask | ~some, dropout_p=dropout)
    return out.masked_fill(~some, 0.0)


class Attention(nn.Module):
    """Multi-head attention, to oneself or, given `kv`, to a source. `attend` may be replaced on an instance."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide a width of {dim}: choose dim as a multiple of heads.")
        self.heads, self.dropout, self.attend = heads, dropout, attend
        self.q, self.kv, self.out = Linear(dim, dim), Linear(dim, 2 * dim), Linear(dim, dim)

    def keys_values(self, x: Float[Tensor, "b s d"]) -> tuple[Heads, Heads]:
        """What `forward` takes as `kv`: computed once for a source that many targets will read."""
        return rearrange(self.kv(x), "b s (two h e) -> two b h s e", two=2, h=self.heads).unbind()

    def forward(self, x: Float[Tensor, "b t d"], mask: Mask = None, *, kv=None, cache=None) -> Float[Tensor, "b t d"]:
        q = rearrange(self.q(x), "b t (h e) -> b h t e", h=self.heads)
        k, v = self.keys_values(x) if kv is None else kv
        k, v = (k, v) if cache is None else cache.update(k, v)
        out = self.attend(q, k, v, mask, **({"dropout": self.dropout} if self.training and self.dropout else {}))
        return self.out(rearrange(out, "b h t e -> b t (h e)"))


class MLP(nn.Module):
    def __init__(self, dim: int, hidden: int, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.up, self.down, self.activation = Linear(dim, hidden), Linear(hidden, dim), activation

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """Attention, attention to a source where `cross` is given, then the MLP, each in a residual with its own norm."""

    def __init__(self, dim, attention, mlp, norm=nn.LayerNorm, *, cross=None, pre_norm=True, dropout=0.0):
        super().__init__()
        self.pre_norm, self.dropout = pre_norm, nn.Dropout(dropout)
        self.attention, self.attention_norm = attention, norm(dim)
        self.cross, self.cross_norm = cross, None if cross is None else norm(dim)
        self.mlp, self.mlp_norm = mlp, norm(dim)

    def residual(self, x: Tensor, norm: Any, f: Callable[[Tensor], Tensor]) -> Tensor:
        return x + self.dropout(f(norm(x))) if self.pre_norm else norm(x + self.dropout(f(x)))

    def forward(self, x: Float[Tensor, "b t d"], mask: Mask = None, *, cache=None, source=None, source_mask=None):
        """(b, t, d) to (b, t, d); `source` is what `cross.keys_values` made of the source, `source_mask` its mask."""
        x = self.residual(x, self.attention_norm, lambda y: self.attention(y, mask, cache=cache))
        if self.cross is not None:
            x = self.residual(x, self.cross_norm, lambda y: self.cross(y, source_mask, kv=source))
        return self.residual(x, self.mlp_norm, self.mlp)


class Unembed(nn.Module):
    """Scores of all tokens by the embedding's own table (Press and Wolf 2017). It holds the module, since loading
    assigns new tensors, and hides it from torch's registry, so that a tied table is one entry of the state dict."""

    token: nn.Embedding

    def __init__(self, token: nn.Embedding):
        super().__init__()
        self.__dict__["token"] = token

    def forward(self, x: Float[Tensor, "b t d"], bias: Tensor | None = None) -> Float[Tensor, "b t vocab"]:
        return linear(x, self.token.weight, bias)


class Patches(nn.Module):
    """Pictures cut into squares of `patch` pixels, row by row; `project` reads each as (channel, row, column)."""

    def __init__(self, patch: int, project: nn.Module):
        super().__init__()
        self.patch, self.project = patch, project

    def forward(self, images: Float[Tensor, "b c y x"]) -> Float[Tensor, "b n d"]:
        return self.project(rearrange(images, "b c (y p) (x q) -> b (y x) (c p q)", p=self.patch, q=self.patch))


def sinusoids(position: Tensor, dim: int) -> Float[Tensor, "*n {dim}"]:
    """Sines, then cosines, of wavelengths from 2 pi to 10000 * 2 pi (Vaswani et al. 2017, section 3.5)."""
    frequency = torch.exp(torch.arange(dim // 2).double() * (-2 * math.log(10000) / dim))
    angle = position.cpu().double()[..., None] * frequency  # on the CPU: not every device has float64
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float().to(position.device)


def positions(keep: Bool[Tensor, "b t"], start: Tensor | int = 0) -> Int[Tensor, "b t"]:
    """Each real token's place among its row's real tokens, counted from `start`; padding gets some valid place."""
    return (start + keep.cumsum(-1) - 1).clamp(min=0)


def padding_mask(keep: Bool[Tensor, "b s"] | None) -> Bool[Tensor, "b 1 1 s"] | None:
    return None if keep is None else rearrange(keep, "b s -> b 1 1 s")


def causal_mask(keep: Bool[Tensor, "b s"], column: Int[Tensor, "t"]) -> Bool[Tensor, "b 1 t s"]:
    """The query standing at `column` sees the real keys at or before it: with padding, a cache, a prompt in pieces."""
    past = torch.arange(keep.shape[-1], device=keep.device) <= column[:, None]
    return past & rearrange(keep, "b s -> b 1 1 s")


def clear_padding(x: Float[Tensor, "b t d"], keep: Bool[Tensor, "b t"] | None) -> Float[Tensor, "b t d"]:
    """States at padding set to 0, so that nothing can be read from them."""
    return x if keep is None else x.masked_fill(~keep[..., None], 0.0)
