"""Decoding: one loop for every model that writes. It knows `model.start`, `model.new_cache` and `model.generation`."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def filter_logits(
    logits: Float[Tensor, "b vocab"], *, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> Float[Tensor, "b vocab"]:
    """Logits divided by the temperature, -inf outside the `top_k` largest and outside the smallest set that holds
    `top_p` of the probability (Holtzman et al. 2020, section 3.1), in this order."""
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # nothing overflows, however small it is
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, index = logits.sort(descending=True)
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability
        outside = (before >= top_p).scatter(1, index, before >= top_p)
        logits = logits.masked_fill(outside, -torch.inf)
    return logits


def choose(logits: Float[Tensor, "b vocab"], *, generator: torch.Generator | None, **settings: Any) -> Int[Tensor, "b"]:
    """The most probable id where the temperature is 0, else one drawn from the filtered distribution."""
    if bool(logits.isnan().any()):
        raise ValueError("The model's scores are not numbers: its weights hold NaN, or overflow in this precision.")
    if settings["temperature"] == 0:
        return logits.argmax(-1)
    probability = filter_logits(logits, **settings).softmax(-1)
    return torch.multinomial(probability, 1, generator=generator)[:, 0]


def generate(
    model: Any,
    ids: Int[Tensor, "b t"],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Sequence[int] | None = None,
    keep: Bool[Tensor, "b t"] | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "b _"]:
    """The prompts as given, each followed from column t on by up to `max_new_tokens` ids.

    keep: False at padding, which may stand left or right. stop: ids that end a row; None means the checkpoint's own,
    () means never. A finished row is filled with the pad id, else the end id. temperature 0 takes the most probable
    id; above, ids are drawn with `generator`. The model is in eval mode meanwhile, whatever it was in.
    Raises ValueError before any work if the arguments do not fit each other or the model.
    """
    stop = model.generation.end if stop is None else tuple(stop)
    _check_sampling(temperature, top_k, top_p)
    _check_ids(model.config, ids, keep)
    keep = None if keep is None or bool(keep.all()) else keep
    fill = model.generation.pad if model.generation.pad is not None else stop[0] if stop else 0
    ends = torch.tensor(stop, dtype=torch.long, device=ids.device)
    with evaluating(model):
        out, seen, step = model.start(ids, keep)
        _check_room(model.config, out, seen, max_new_tokens)
        cache = model.new_cache(len(out))
        new, finished = out, torch.zeros(len(out), dtype=torch.bool, device=ids.device)
        for _ in range(max_new_tokens):
            logits = step(new, seen, cache)
            chosen = choose(logits, generator=generator, temperature=temperature, top_k=top_k, top_p=top_p)
            new, seen = chosen.masked_fill(finished, fill)[:, None], None
            out = torch.cat([out, new], dim=1)
            finished = finished | torch.isin(new[:, 0], ends)
            if len(stop) and bool(finished.all()):
                break
    return out


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}: expected 0 (the most probable token) or a positive number.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}: expected at least 1.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: expected 0 < top_p <= 1.")


def _check_ids(config: Any, ids: Tensor, keep: Tensor | None) -> None:
    if keep is not None and keep.shape != ids.shape:
        raise ValueError(
            f"keep has shape {list(keep.shape)} and ids {list(ids.shape)}: expected one truth value per id."
        )
    if ids.numel() == 0 or (keep is not None and not bool(keep.any(-1).all())):
        raise ValueError("A prompt has no tokens: give each row at least one.")
    if int(ids.min()) < 0 or int(ids.max()) >= config.vocab:
        raise ValueError(f"ids go from {int(ids.min())} to {int(ids.max())}: this model knows 0 to {config.vocab - 1}.")


def _check_room(config: Any, ids: Tensor, keep: Tensor | None, new: int) -> None:
    if new < 1:
        raise ValueError(f"max_new_tokens is {new}: expected at least 1.")
    longest = ids.shape[1] if keep is None else int(keep.sum(-1).max())
    if longest + new > config.length:
        room, fewer = config.length - longest, f"shorten the prompt to {config.length - 1} or fewer."
        mend = f"ask for at most {room} new tokens." if room > 0 else fewer
        raise ValueError(
            f"{longest} prompt tokens and {new} new do not fit a model of {config.length} positions: {mend}"
        )
