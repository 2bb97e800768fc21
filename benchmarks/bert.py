"""BERT-base beside transformers', weights random in the published layout and sizes: speed does not depend on them."""

import harness

MAKE = """
import torch, transformers
torch.manual_seed(0)
transformers.BertForMaskedLM(transformers.BertConfig()).eval().save_pretrained({folder!r})
"""
IMPORT = {
    "ours": "import torch; from scratchformers import BERT, load",
    "theirs": "import torch; from transformers import BertForMaskedLM",
}
FIRST = {
    "ours": "import torch; from scratchformers import load; model = load({folder!r}); f = lambda x: model(x)",
    "theirs": "import torch; from transformers import BertForMaskedLM as M; "
    "model = M.from_pretrained({folder!r}); f = lambda x: model(x).logits",
}
LOGITS = "\nwith torch.no_grad(): answer = float(f(torch.arange(128)[None]).double().abs().mean())"
LENGTHS = (8, 12, 16, 20, 24, 32, 64, 128)


def models(folder, side, device):
    import torch

    if side == "ours":
        import scratchformers as sf

        return torch, sf.load(folder, device=device)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return torch, transformers.BertForMaskedLM.from_pretrained(folder).eval().to(device)


def batch(torch, lengths, device):
    ids = torch.randint(1000, 30522, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    keep = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return ids.to(device), keep.to(device)


def states(torch, model, side, ids, keep):
    """What the encoder makes of the rows; the answers compared are the states of real tokens."""

    @torch.no_grad()
    def work():
        if side == "ours":
            return model.encode(ids, keep=keep)
        return model.bert(ids, attention_mask=keep.long()).last_hidden_state

    return work, lambda: work()[keep].double().abs().mean(0).tolist()


def ragged(folder, side, device, quick):
    torch, model = models(folder, side, device)
    return states(torch, model, side, *batch(torch, LENGTHS, device))


def equal(folder, side, device, quick):
    torch, model = models(folder, side, device)
    return states(torch, model, side, *batch(torch, (128,) * (4 if quick else 8), device))


def training(folder, side, device, quick):
    """A step on ragged rows with 15 % of their tokens asked for. Ours scores those; theirs, whose model gives no other
    way, scores every place and leaves the rest out of the loss. Dropout draws differently, so the answers compared are
    those without: the loss, and the gradients' norm."""
    torch, model = models(folder, side, device)
    if side == "ours":  # copied out of the file, as `train --from` makes it
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    ids, keep = batch(torch, LENGTHS, device)
    chosen = keep & (torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.15).to(device)
    labels = ids.masked_fill(~chosen, -100)

    def backward():
        if side == "ours":
            logits = model.head(model.encode(ids, keep=keep)[chosen][None])[0]
            loss = torch.nn.functional.cross_entropy(logits, ids[chosen])
        else:
            loss = model(ids, attention_mask=keep.long(), labels=labels).loss
        loss.backward()
        return float(loss.detach())

    def steps():
        model.train()
        for _ in range(1 if quick else 2):
            backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def answer():
        model.eval()
        loss = backward()
        squares = sum(float(parameter.grad.square().sum()) for parameter in model.parameters())
        optimizer.zero_grad(set_to_none=True)
        return [loss, squares**0.5]

    return steps, answer


ROWS = [
    harness.Row("import", "what a program with BERT imports, torch included", code=IMPORT),
    harness.Row(
        "first logits",
        "import, load, and the logits of 128 tokens",
        code={side: code + LOGITS for side, code in FIRST.items()},
    ),
    harness.Row("ragged", "the states of 8 rows of 8 to 128 tokens, padded to 128", "", ragged),
    harness.Row("equal", "the states of 8 rows of 128 tokens", "the states of 4 rows of 128 tokens", equal),
    harness.Row(
        "training",
        "2 steps on 8 rows of 8 to 128 tokens, 15 % hidden: ours scores those, theirs all places",
        "a step on 8 rows of 8 to 128 tokens, 15 % hidden: ours scores those, theirs all places",
        training,
    ),
]
