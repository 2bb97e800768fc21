"""Two towers, their gradient in pieces, and one process of two that learn them together: a script, told its rank and
the folder they share. It imports no reference, so that it begins at once."""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from scratchformers.training.contrastive import contrastive_loss, fits, learn_cached

CPU = torch.device("cpu")


class Towers(nn.Module):
    """Two towers with dropout, and a scale."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = (
            nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Dropout(0.4), nn.Linear(16, 5)) for width in (7, 11)
        )
        self.scale = nn.Parameter(torch.tensor(2.0))


def encode(tower, x):
    return F.normalize(tower(x), dim=-1)


def cached(model, x, y, size, loss):
    """The loss of features of both, and the gradient of each parameter, in pieces of `size`."""
    model.zero_grad()
    parts = [
        [partial(encode, tower, rows) for rows in whole.split(size)]
        for tower, whole in ((model.image, x), (model.text, y))
    ]
    cost = learn_cached(parts, loss, lambda cost: cost.backward(), CPU)
    return cost, {name: p.grad for name, p in model.named_parameters()}


def plain(x):
    """A gather as torch.distributed has it: no gradients for what the others sent."""
    parts = [torch.empty_like(x) for _ in range(2)]
    dist.all_gather(parts, x.detach().contiguous())
    parts[dist.get_rank()] = x
    return torch.cat(parts)


def main(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    given, model = torch.load(folder / "given.pt"), Towers().double().eval()
    half = len(given["texts"]) // 2
    own, found = slice(half * rank, half * (rank + 1)), {}
    rows, texts, fit = torch.arange(2 * half)[own], given["texts"][own], partial(fits, given["texts"][:, None])
    for kind, more in (("ours", ()), ("plain", (plain,))):
        for size in (half, 2):
            loss = lambda a, b, more=more: contrastive_loss(a, b, model.scale, rows, texts, fit, *more)  # noqa: E731
            cost, grads = cached(model, given["x"][own], given["y"][own], size, loss)
            for each in (values := [cost, *grads.values()]):
                dist.all_reduce(each)
                each /= 2  # as DistributedDataParallel does
            found[kind, size] = [each.clone() for each in values]
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
