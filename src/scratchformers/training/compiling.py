"""What a task calls of its model, compiled by torch while it learns; and if that does not work here, the reason."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

BACKEND = "inductor"  # which writes C++ for a CPU, and needs a compiler for it
CALLED = ("forward", "encode", "read", "decode", "score", "encode_image", "encode_text")  # by a task, of a model


class Compiled:
    """From now on the model is called compiled, where gradients are computed: evaluation and decoding, whose shapes are
    many, have it as it is. Once compiling fails it is as it is everywhere. The names in its state dict stay."""

    def __init__(self, model: nn.Module):
        self._why, self._said = "", False
        plain = {name: getattr(model, name) for name in CALLED if hasattr(model, name)}
        vars(model).update({n: partial(self._call, f, torch.compile(f, backend=BACKEND)) for n, f in plain.items()})

    def _call(self, plain: Callable[..., Any], compiled: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling() or self._why or not torch.is_grad_enabled():
            return plain(*given, **named)
        drawn = torch.get_rng_state()
        try:
            return compiled(*given, **named)
        except Exception as error:
            self._why = f"torch.compile does not work here ({_reason(error)}): training goes on uncompiled."
            torch.set_rng_state(drawn)
        return plain(*given, **named)  # which says better what is wrong with the call itself, if that is the reason

    def news(self) -> dict[str, str]:
        """Once, if compiling has failed: a sentence that says why."""
        said, self._said = self._said, bool(self._why)
        return {"uncompiled": self._why} if self._why and not said else {}


def _reason(error: BaseException) -> str:
    """The first line of the innermost error, without its full stop."""
    while (inner := getattr(error, "inner_exception", error.__cause__)) is not None:
        error = inner
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".: ")
