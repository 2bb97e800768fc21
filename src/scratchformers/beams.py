"""Beam search: of all texts the most probable, as far as following a few at a time finds it."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from scratchformers.generate import Beginning, Sampling, evaluating, plain, vocabulary
from scratchformers.source import Step

NONE = -torch.inf  # the score of no text


class Search(Beginning):
    """Of each row of a batch the best texts: `found` (b, beams, limit) holds their new ids, `lengths` how many these
    are, `scores` (b, beams) falls; where fewer were found it is -inf, and the length 0.

    A text ends by a stop id, or by the limit. It counts if it is then among its row's `beams` best, with its log
    probability / its new ids ** `penalty`. A row that is not expected to gain from going on leaves the batch.
    """

    def __init__(self, model: Any, ids: Tensor, *, beams: int, penalty: float, early: bool | str, **rest: Any):
        if beams > (most := vocabulary(model)):
            raise ValueError(f"beams is {beams}: expected at most {most}, as many as the model has ids.")
        super().__init__(model, ids, slide=None, **rest)
        self.beams, self.length_penalty, self.early, self.limit = beams, penalty, early, self.left[0]
        rows, device = len(ids), ids.device
        real = {"dtype": torch.promote_types(next(model.parameters()).dtype, torch.float32), "device": device}
        self.found = torch.full((rows, beams, self.limit), self.fill, device=device)
        self.lengths, self.scores = self.found.new_zeros(rows, beams), torch.full((rows, beams), NONE, **real)
        self.ends = self.found.new_tensor(self.stop)
        self.rows = torch.arange(rows, device=device)  # those that go on; what their beams wrote, and its probability:
        self.written, self.total = self.found.new_zeros(rows, 1, 0), torch.zeros(rows, 1, **real)

    def run(self) -> None:
        step, cache, ids, keep = plain(self.step), self.model.new_cache(len(self.ids)), self.ids, self.keep
        for length in range(1, self.limit + 1):
            total, beam, token = self._continue(step(ids, keep, cache))
            written = torch.cat([_pick(self.written, beam), token[..., None]], dim=-1)
            ended = torch.isin(token, self.ends) | (length == self.limit)
            if bool(ended[:, : self.beams].any()):
                self._collect(written[:, : self.beams], total.masked_fill(~ended, NONE)[:, : self.beams])
            self.check(torch.maximum(total[:, 0], self.scores[self.rows, 0]))
            total, best = total.masked_fill(ended, NONE).topk(self.beams)
            on = ~self._is_over(total[:, 0], length)
            if not bool(on.any()):
                return
            width, beam = self.written.shape[1], beam.gather(1, best)
            self.total, self.written, self.rows = total[on], _pick(written, best)[on], self.rows[on]
            self._follow(
                step, cache, on, (torch.arange(len(on), device=on.device)[:, None] * width + beam)[on].flatten()
            )
            ids, keep = self.written[:, :, -1].reshape(-1, 1), None

    def _continue(self, logits: Float[Tensor, "r vocab"]) -> tuple[Tensor, Tensor, Tensor]:
        """The best continuations of each row: log probability, beam and id, (b, k) each, best first. k leaves `beams`
        that do not end, however many stop ids there are."""
        k, (rows, width, _) = max(2, 1 + len(self.stop)) * self.beams, self.written.shape
        log, token = self._ruled(logits.to(self.total.dtype).log_softmax(-1)).topk(min(k, self.vocab))
        total, token = (self.total[..., None] + log.unflatten(0, (rows, width))).flatten(1), token.view(rows, -1)
        short = max(0, k - total.shape[1])
        total, token = F.pad(total, (0, short), value=NONE), F.pad(token, (0, short))
        total, place = total.topk(k)
        return total, (place // log.shape[1]).clamp(max=width - 1), token.gather(1, place)

    def _ruled(self, log: Float[Tensor, "r vocab"]) -> Float[Tensor, "r vocab"]:
        if not self.ruled:
            return log
        rows, (*_, width, length) = self.rows.tolist(), self.written.shape
        prompts = [self.texts[row] for row in rows for _ in range(width)]
        texts = [prompt + new for prompt, new in zip(prompts, self.written.flatten(0, 1).tolist())]
        return self.obey(log, texts, [len(prompt) for prompt in prompts], [self.limit - length] * len(texts))

    def _collect(self, written: Int[Tensor, "b beams n"], total: Float[Tensor, "b beams"]) -> None:
        """Takes texts that ended, where they are better than those found."""
        length, rows, ended = written.shape[-1], self.rows, total > NONE
        written = F.pad(written, (0, self.limit - length), value=self.fill).where(ended[..., None], self.fill)
        scores = torch.cat([self.scores[rows], total / length**self.length_penalty], dim=1)
        found = torch.cat([self.found[rows], written], dim=1)
        lengths = torch.cat([self.lengths[rows], length * ended], dim=1)
        self.scores[rows], best = scores.topk(self.beams)
        self.found[rows], self.lengths[rows] = _pick(found, best), lengths.gather(1, best)

    def _is_over(self, best: Float[Tensor, "b"], length: int) -> Bool[Tensor, "b"]:
        """Whether a row has all texts it needs, and its best beam, with the length that favours it (`never` stop early)
        or that which it has, would not be among them."""
        worst = self.scores[self.rows, -1]
        favoured = self.limit if self.early == "never" and self.length_penalty > 0 else length
        over = best / favoured**self.length_penalty <= worst
        return over | (worst > NONE) if self.early is True else over

    def _follow(self, step: Any, cache: Any, on: Bool[Tensor, "b"], before: Int[Tensor, "r"]) -> None:
        """Each row that is read next was row `before` of the last; of the source only the rows `on` are read."""
        if not torch.equal(before, torch.arange(len(cache.next), device=before.device)):
            cache.reorder(before)
        if isinstance(step, Step) and not bool(on.all()):
            step.select(on.nonzero()[:, 0])


def _pick(x: Shaped[Tensor, "b n t"], index: Int[Tensor, "b k"]) -> Shaped[Tensor, "b k t"]:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def beam_search(
    model: Any,
    source: Int[Tensor, "b s"],
    *,
    beams: int,
    max_new_tokens: int,
    keep: Bool[Tensor, "b s"] | None = None,
    length_penalty: float | None = None,
    early_stopping: bool | str | None = None,
    nbest: int | None = None,
    stop: int | Sequence[int] | None = None,
    repetition_penalty: float = 1.0,
) -> Any:
    """The best text for each source, as ids (b, t), the start token first, filled with the pad id. With `nbest` the n
    best, ids (b, n, t) and scores (b, n), where a score of -inf says that there were not as many.

    keep: False at padding. length_penalty: a score is the log probability of a text / its new ids (the end counts, the
    start does not) ** length_penalty. early_stopping: True stops as soon as `beams` texts have ended; False when the
    best beam, as long as it is, scores below all of them; "never" when it would even if it grew to the length that
    favours it. stop: ids that end a text. None means, of these, what the checkpoint's generation config says; what
    else it forces, forbids or bounds is honoured. A model without a source continues its prompts, which stand in front.
    The result for a row does not depend on its batch. The model is in eval mode meanwhile, whatever it was in.
    Raises ValueError before any work if the arguments do not fit each other or the model.
    """
    rules = model.generation
    penalty = rules.length_penalty if length_penalty is None else length_penalty
    early = rules.early_stopping if early_stopping is None else early_stopping
    _check(beams, penalty, early, nbest)
    sampling = Sampling(repetition_penalty=repetition_penalty)
    search = Search(
        model, source, beams=beams, penalty=penalty, early=early, max_new_tokens=max_new_tokens, keep=keep, stop=stop,
        repetition_penalty=sampling.repetition_penalty,
    )  # fmt: skip
    with evaluating(model):
        search.run()
    n = nbest or 1
    new = search.found[:, :n, : int(search.lengths[:, :n].max())]
    ids = torch.cat([search.ids[:, None].expand(-1, n, -1), new], dim=-1)
    return ids[:, 0] if nbest is None else (ids, search.scores[:, :n])


def _check(beams: int, penalty: float, early: bool | str, nbest: int | None) -> None:
    if beams < 1:
        raise ValueError(f"beams is {beams}: expected at least 1.")
    if not abs(penalty) <= 100:
        raise ValueError(f"length_penalty is {penalty}: expected a number from -100 to 100.")
    if not isinstance(early, bool) and early != "never":
        raise ValueError(f'early_stopping is {early!r}: expected True, False or "never".')
    if nbest is not None and not 1 <= nbest <= beams:
        raise ValueError(f"nbest is {nbest}: expected 1 to {beams}, as many as there are beams.")
