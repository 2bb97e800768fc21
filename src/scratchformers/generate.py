"""Decoding: one loop for every model that writes. It knows `model.start`, `model.new_cache` and `model.generation`."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scratchformers.checkpoints.pretrained import Generation
from scratchformers.source import Step

Generators = torch.Generator | Sequence[torch.Generator] | None  # for all rows together, or one for each


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


@dataclass(frozen=True)
class Sampling:
    """How an id is chosen by its score. Raises ValueError for what cannot be."""

    temperature: float = 0.0  # 0 takes the largest
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    generator: Generators = None

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature is {self.temperature}: expected 0 (the most probable token) or a positive number."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}: expected at least 1.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: expected 0 < top_p <= 1.")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}: expected 1 (none) or a positive number."
            )

    def check_rows(self, rows: int) -> None:
        if isinstance(self.generator, Sequence) and len(self.generator) != rows:
            raise ValueError(f"There are {len(self.generator)} generators for {rows} rows: give one, or one for each.")


def filter_logits(
    logits: Float[Tensor, "b vocab"], *, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> Float[Tensor, "b vocab"]:
    """Logits divided by the temperature, -inf outside the `top_k` largest and outside the smallest set that holds
    `top_p` of the probability (Holtzman et al. 2020, section 3.1), in this order."""
    temperature = max(temperature, torch.finfo(logits.dtype).tiny)  # below, it would be rounded to 0
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


def choose(logits: Float[Tensor, "b vocab"], sampling: Sampling) -> Int[Tensor, "b"]:
    """The most probable id where the temperature is 0, else one drawn from the filtered distribution."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    kept = filter_logits(logits, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
    probability, generator = kept.softmax(-1), sampling.generator
    if not isinstance(generator, Sequence):
        return torch.multinomial(probability, 1, generator=generator)[:, 0]
    drawn = [torch.multinomial(row, 1, generator=own) for row, own in zip(probability, generator)]
    return torch.cat(drawn)


def penalise(
    logits: Float[Tensor, "b vocab"], texts: Sequence[Sequence[int]], penalty: float
) -> Float[Tensor, "b vocab"]:
    """Scores of ids that a row already holds, divided by the penalty where positive and multiplied where negative
    (Keskar et al. 2019, section 4.1)."""
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for row, text in enumerate(texts):
        seen[row, list(text)] = True
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def forbidden(text: Sequence[int], rules: Generation, stop: Sequence[int], written: int) -> set[int]:
    """The ids that may not follow a text of which the last `written` are new, beside those that never may."""
    ids, size = set(), rules.no_repeat_ngram
    if size:
        past = text[len(text) - size + 1 :]
        grams = (text[i : i + size] for i in range(len(text) - size + 1))
        ids |= {gram[-1] for gram in grams if gram[:-1] == past}
    for *past, banned in rules.bad_words:
        if past and text[len(text) - len(past) :] == past:
            ids.add(banned)
    short = written < rules.min_new_tokens if rules.min_new_tokens else len(text) < rules.min_length
    ids |= set(stop) if short else set()
    return ids


def forced(text: Sequence[int], rules: Generation, left: int) -> tuple[int, ...]:
    """The ids of which one must follow, if any: at the very beginning, or where `left` says only one more may come."""
    first = () if rules.forced_start is None or len(text) != 1 else (rules.forced_start,)
    return rules.forced_end if rules.forced_end and left == 1 else first


def vocabulary(model: Any) -> int:
    """The number of ids that it writes; what it reads may be of others."""
    return getattr(model.config, "target_vocab", None) or model.config.vocab


def plain(step: Any) -> Any:
    """A step as it was before it was compiled."""
    return step.plain if isinstance(step, Step) else getattr(step, "_torchdynamo_orig_callable", step)


class Beginning:
    """A batch that is to be continued, checked: its first ids, `texts` (these without padding), the step that scores
    what follows, how many ids are `left` to write in each row, and what the checkpoint's rules make of scores."""

    def __init__(
        self,
        model: Any,
        ids: Int[Tensor, "b t"],
        *,
        max_new_tokens: int | Sequence[int],
        stop: int | Sequence[int] | None = None,
        keep: Bool[Tensor, "b t"] | None = None,
        repetition_penalty: float = 1.0,
        slide: bool | None = False,
    ):
        self.model, self.rules, self.penalty = model, model.generation, repetition_penalty
        self.stop = self.rules.end if stop is None else (stop,) if isinstance(stop, int) else tuple(stop)
        self.vocab = vocabulary(model)
        met = [token for token in self.stop if 0 <= token < self.vocab]  # others never are
        self.fill = self.rules.pad if self.rules.pad is not None else met[0] if met else 0
        _check_ids(model.config, ids, keep)
        if strange := [token for token in self.rules.forces if token >= self.vocab]:
            raise ValueError(
                f"The checkpoint's generation config forces id {strange[0]}, which the model does not have."
            )
        self.left = [max_new_tokens] * len(ids) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        if len(self.left) != len(ids):
            raise ValueError(f"There are {len(self.left)} limits for {len(ids)} rows: give one, or one for each.")
        if hasattr(model, "read"):  # its source is work that a target which does not fit must not cost
            check_room(model.config, [1], [max(self.left)], slide=slide)
        with evaluating(model):
            self.ids, self.keep, self.step = model.start(ids, None if keep is None or bool(keep.all()) else keep)
        rows = self.ids.tolist()
        real = [[True] * len(row) for row in rows] if self.keep is None else self.keep.tolist()
        self.texts = [[token for token, here in zip(*pair) if here] for pair in zip(rows, real)]
        self.prompts = [len(text) for text in self.texts]
        check_room(model.config, self.prompts, self.left, slide=slide)
        words = [word[0] for word in self.rules.bad_words if len(word) == 1 and word[0] not in self.stop]
        self.ruled = self.rules.constrains or repetition_penalty != 1
        self.never = torch.tensor([word for word in words if word < self.vocab], dtype=torch.long, device=ids.device)

    def obey(
        self,
        scores: Float[Tensor, "b vocab"],
        texts: Sequence[Sequence[int]],
        prompts: Sequence[int],
        left: Sequence[int],
    ) -> Float[Tensor, "b vocab"]:
        """The scores, which are changed, as the repetition penalty, then the checkpoint's rules leave them: -inf for
        what may not come, 0 for what must. Nothing is asked of a row of which none are `left`."""
        scores = scores if self.penalty == 1 else penalise(scores, texts, self.penalty)
        scores, banned = scores.index_fill_(1, self.never, -torch.inf), []
        for row, (text, prompt, more) in enumerate(zip(texts, prompts, left)):
            if more and (must := forced(text, self.rules, more)):
                scores[row], scores[row, list(must)] = -torch.inf, 0.0
            elif more:
                banned += [(row, token) for token in forbidden(text, self.rules, self.stop, len(text) - prompt)]
        if banned := [(row, token) for row, token in banned if 0 <= token < self.vocab]:  # a stop id may be none
            rows, ids = zip(*banned)
            scores[list(rows), list(ids)] = -torch.inf
        return scores

    def check(self, best: Float[Tensor, "b"]) -> None:
        """ValueError where not even the best score of a row is a number."""
        if bool(best.isfinite().all()):
            return
        if self.rules.constrains and bool(best.isneginf().any()):
            raise ValueError("The checkpoint's generation config forbids every id that could come next.")
        raise ValueError("The model's scores are not numbers: its weights hold NaN, or overflow in this precision.")


class Decoding(Beginning):
    """A batch being continued. Iterating gives, for each row, its next id, or None once the row is finished.

    `texts` are the rows without padding, prompt included; `finished` may be set from outside to end a row. The caller
    is in `evaluating(model)` whenever it asks for the next ids.
    """

    def __init__(
        self,
        model: Any,
        ids: Int[Tensor, "b t"],
        *,
        max_new_tokens: int | Sequence[int],
        stop: int | Sequence[int] | None = None,
        keep: Bool[Tensor, "b t"] | None = None,
        slide: bool = False,
        sampling: Sampling,
    ):
        sampling.check_rows(len(ids))
        super().__init__(
            model, ids, max_new_tokens=max_new_tokens, stop=stop, keep=keep, slide=slide,
            repetition_penalty=sampling.repetition_penalty,
        )  # fmt: skip
        self.sampling, self.plain, self.cache, self.finished = sampling, plain(self.step), None, [False] * len(ids)
        self.rows = list(range(len(ids)))  # those that are computed
        self.window = list(self.prompts)  # how many of a row's last tokens the cache holds after the next reading

    def __iter__(self) -> Iterator[list[int | None]]:
        return self

    def __next__(self) -> list[int | None]:
        if all(self.finished):
            raise StopIteration
        self._drop()
        left = [0 if self.finished[row] else self.left[row] for row in self.rows]
        logits = self._scores()
        if self.ruled:
            texts, prompts = [self.texts[row] for row in self.rows], [self.prompts[row] for row in self.rows]
            logits = self.obey(logits.clone(), texts, prompts, left)
        self.check(logits.amax(-1))
        new: list[int | None] = [None] * len(self.finished)
        for row, token, more in zip(self.rows, choose(logits, self.sampling).tolist(), left):
            self.window[row] += 1
            if more:
                new[row] = token
                self.texts[row].append(token)
                self.left[row] -= 1
                self.finished[row] = token in self.stop or not self.left[row]
        return new

    def _drop(self) -> None:
        """Finished rows leave the batch once they are a quarter of it, since all others are copied then; but not where
        a compiled step would be compiled anew, or one generator draws for all rows in turn."""
        draws, own = self.sampling.temperature > 0, isinstance(self.sampling.generator, Sequence)
        stay = [i for i, row in enumerate(self.rows) if not self.finished[row]]
        few = 4 * len(stay) > 3 * len(self.rows)
        if few or self.cache is None or self.plain is not self.step or (draws and not own):
            return
        kept = torch.tensor(stay, device=self.ids.device)
        self.cache.reorder(kept)
        if isinstance(self.step, Step):
            self.step.select(kept)
        if own:
            self.sampling = replace(self.sampling, generator=[self.sampling.generator[i] for i in stay])
        self.rows = [self.rows[i] for i in stay]

    def _scores(self) -> Float[Tensor, "b vocab"]:
        """Reads what is new; where a row has no position left for it, the last half of that row, from position 0."""
        length = self.model.config.length
        done, late = [self.finished[row] for row in self.rows], [self._is_late(row) for row in self.rows]
        if any(is_late and not is_done for is_late, is_done in zip(late, done)):
            ids, keep = self._slide(length)
        elif self.cache is None:
            ids, keep = self.ids, self.keep
        else:
            ids = torch.tensor([[0 if is_done else self.texts[row][-1]] for row, is_done in zip(self.rows, done)])
            keep = torch.tensor([[not is_done] for is_done in done]) if any(late) else None
        step = self.step
        if (
            self.cache is None
        ):  # a compiled step would be compiled again for each length of prompt, and as a cache grows
            static = self.plain is not self.step
            room = ids.shape[1] + min(max(self.left), length)
            self.cache, step = self.model.new_cache(len(ids), length=room if static else None), self.plain
        device = self.ids.device
        return step(ids.to(device), None if keep is None else keep.to(device), self.cache)

    def _is_late(self, row: int) -> bool:
        return self.window[row] > self.model.config.length

    def _slide(self, length: int) -> tuple[Tensor, Tensor | None]:
        """What a fresh cache is to hold: of a full row its last half, of any other what it held, so that each row
        slides at a time of its own."""
        self.cache, half = None, max(1, length // 2)
        for row in self.rows:
            self.window[row] = 1 if self.finished[row] else half if self._is_late(row) else self.window[row]
        rows = [self.texts[row][len(self.texts[row]) - self.window[row] :] for row in self.rows]
        widest = max(map(len, rows))
        ids = torch.tensor([[0] * (widest - len(row)) + row for row in rows])
        keep = torch.tensor([[False] * (widest - len(row)) + [True] * len(row) for row in rows])
        return ids, None if bool(keep.all()) else keep


def generate(
    model: Any,
    ids: Int[Tensor, "b t"],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: int | Sequence[int] | None = None,
    keep: Bool[Tensor, "b t"] | None = None,
    generator: Generators = None,
    slide: bool = False,
) -> Int[Tensor, "b _"]:
    """The prompts as given, each followed from column t on by up to `max_new_tokens` ids.

    keep: False at padding, which may stand left or right. stop: ids that end a row; None means the checkpoint's own,
    () means never. A finished row is filled with the pad id, else the end id. temperature 0 takes the most probable
    id; above, ids are drawn with `generator`, which may be a list, one per row. slide: a row that fills the model goes
    on with its last half, read anew from position 0, instead of being refused. What the checkpoint's generation config
    forces, forbids or bounds is honoured. The model is in eval mode meanwhile, whatever it was in.
    Raises ValueError before any work if the arguments do not fit each other or the model.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, generator)
    decoding = Decoding(model, ids, max_new_tokens=max_new_tokens, stop=stop, keep=keep, slide=slide, sampling=sampling)
    with evaluating(model):
        columns = [[decoding.fill if token is None else token for token in new] for new in decoding]
    return torch.cat([decoding.ids, torch.tensor(columns, device=ids.device).T], dim=1)


def stream(
    model: Any,
    ids: Int[Tensor, "1 t"],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: int | Sequence[int] | None = None,
    keep: Bool[Tensor, "1 t"] | None = None,
    generator: Generators = None,
    slide: bool = False,
) -> Iterator[int]:
    """The ids that `generate` would append to one prompt, each as soon as it is chosen. Same arguments, same errors,
    raised before anything is read; between two ids the model is as it was."""
    if len(ids) != 1:
        raise ValueError(f"There are {len(ids)} prompts: stream continues one. Use generate for many.")
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, generator)
    decoding = Decoding(model, ids, max_new_tokens=max_new_tokens, stop=stop, keep=keep, slide=slide, sampling=sampling)
    return _stream(model, decoding)


def _stream(model: Any, decoding: Decoding) -> Iterator[int]:
    while True:
        with evaluating(model):
            new = next(decoding, None)
        if new is None:
            return
        yield from (token for token in new if token is not None)


def _check_ids(config: Any, ids: Tensor, keep: Tensor | None) -> None:
    if ids.ndim != 2 or ids.is_floating_point():
        what = f"{str(ids.dtype).removeprefix('torch.')} of shape {list(ids.shape)}"
        raise ValueError(f"ids are {what}: expected whole numbers, rows by columns.")
    if keep is not None and keep.shape != ids.shape:
        raise ValueError(
            f"keep has shape {list(keep.shape)} and ids {list(ids.shape)}: expected one truth value per id."
        )
    if ids.numel() == 0 or (keep is not None and not bool(keep.any(-1).all())):
        raise ValueError("A prompt has no tokens: give each row at least one.")
    if int(ids.min()) < 0 or int(ids.max()) >= config.vocab:
        raise ValueError(f"ids go from {int(ids.min())} to {int(ids.max())}: this model knows 0 to {config.vocab - 1}.")


def check_room(config: Any, prompts: Sequence[int], new: Sequence[int], *, slide: bool | None) -> None:
    """`slide` None: it cannot."""
    if min(new) < 1:
        raise ValueError(f"max_new_tokens is {min(new)}: expected at least 1.")
    longest, wanted = max(zip(prompts, new), key=sum)
    if longest + wanted > config.length and not slide:
        room, fewer = config.length - longest, f"shorten the prompt to {max(1, config.length - wanted)} or fewer"
        mend = f"ask for at most {room} new tokens" if room > 0 else fewer
        mend += "" if slide is None else ", or let it slide"
        tokens = "tokens" if longest > 1 else "token"
        raise ValueError(
            f"{longest} prompt {tokens} and {wanted} new do not fit a model of {config.length} positions: {mend}."
        )
