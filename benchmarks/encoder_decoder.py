"""A Marian of OPUS-MT's size (6 + 6 blocks of 512, 58,101 tokens) beside transformers', weights random in the published
layout: speed does not depend on them, and no translation ends before its limit. Sentences are those of Python's own
documentation (`pydoc_data`)."""

import random
import re

import harness

VOCAB, PAD, END = 58101, 58100, 0
MAKE = """
import torch, transformers, encoder_decoder
torch.manual_seed(0)
config = transformers.MarianConfig(
    d_model=512, encoder_layers=6, decoder_layers=6, encoder_attention_heads=8, decoder_attention_heads=8,
    encoder_ffn_dim=2048, decoder_ffn_dim=2048, activation_function="swish", scale_embedding=True, vocab_size=58101,
    max_position_embeddings=512, pad_token_id=58100, eos_token_id=0, decoder_start_token_id=58100,
    forced_eos_token_id=0)
model = transformers.MarianMTModel(config).eval()
for name, parameter in model.named_parameters():
    if parameter.ndim == 2 and "embed" not in name and "shared" not in name: torch.nn.init.normal_(parameter, std=0.06)
model.generation_config.bad_words_ids = [[58100]]
model.save_pretrained({folder!r})
encoder_decoder.vocabulary({folder!r})
"""
IMPORT = {
    "ours": "import torch; from scratchformers import EncoderDecoder, load, generate, beam_search",
    "theirs": "import torch; from transformers import MarianMTModel",
}


def sentences(least=4, most=60):
    """Of Python's documentation, each once, in an order that is drawn; by words."""
    from pydoc_data.topics import topics

    text = re.sub(r"\s+", " ", " ".join(topics.values()))
    found = dict.fromkeys(each.strip() for each in re.split(r"(?<=[.!?]) (?=[A-Z])", text))
    kept = [each for each in found if least <= len(each.split()) <= most and each.isascii()]
    random.Random(0).shuffle(kept)
    return kept


def vocabulary(folder):
    """A tokeniser as Marian's: pieces of these sentences, for both sides, and names for all numbers there are."""
    import io
    import json
    from pathlib import Path

    import sentencepiece

    trained, folder = io.BytesIO(), Path(folder)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_writer=trained, vocab_size=3000, minloglevel=2
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    names = [pieces.id_to_piece(i) for i in range(3, pieces.get_piece_size())]
    names = ["</s>", "<unk>", *names]
    names += [f"▁unused{i}" for i in range(len(names), PAD)]
    for side in ("source", "target"):
        (folder / f"{side}.spm").write_bytes(trained.getvalue())
    vocab = {name: i for i, name in enumerate([*names, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    said = {"source_lang": "en", "target_lang": "en", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(said), encoding="utf-8")


def models(folder, side, device):
    import torch

    if side == "ours":
        import scratchformers as sf

        return torch, sf, sf.load(folder, device=device)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return torch, transformers, transformers.MarianMTModel.from_pretrained(folder).eval().to(device)


def batch(folder, texts, device):
    """Ids of the texts, padded at the right, and what is real of them."""
    import torch

    import scratchformers as sf

    tokenizer = sf.load_tokenizer(folder)
    rows = [tokenizer.encode(text) for text in texts]
    ids = torch.full((len(rows), max(map(len, rows))), PAD)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids.to(device), (ids != PAD).to(device)


def decoding(beams, folder, side, device, quick):
    """Theirs without a limit of its own on the length; the answers compared are the ids."""
    _, library, model = models(folder, side, device)
    ids, keep = batch(folder, sentences(8, 24)[: 4 if quick else 8], device)
    new = 12 if quick else 24

    def ours():
        if beams == 1:
            return library.generate(model, ids, keep=keep, max_new_tokens=new).tolist()
        return library.beam_search(model, ids, keep=keep, beams=beams, max_new_tokens=new).tolist()

    def theirs():
        same = {"attention_mask": keep.long(), "num_beams": beams, "max_new_tokens": new, "do_sample": False}
        return model.generate(ids, **same).tolist()

    work = ours if side == "ours" else theirs
    return work, work


def greedy(folder, side, device, quick):
    return decoding(1, folder, side, device, quick)


def beams(folder, side, device, quick):
    return decoding(4, folder, side, device, quick)


def file(folder, side, device, quick):
    """A file of sentences, from text to text. Theirs as one would write it: sorted by length, batches of 32."""
    texts, new = sentences()[: 40 if quick else 500], 16 if quick else 32
    _, library, model = models(folder, side, device)
    if side == "ours":
        translator = library.Translator(model, library.load_tokenizer(folder))

        def work():
            return [each.text for each in translator(texts, beams=1, max_new_tokens=new)]

        return work, work
    tokenizer = library.MarianTokenizer.from_pretrained(folder)

    def work():
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = [""] * len(texts)
        for start in range(0, len(texts), 32):
            rows = order[start : start + 32]
            given = tokenizer([texts[i] for i in rows], padding=True, return_tensors="pt").to(device)
            ids = model.generate(**given, num_beams=1, do_sample=False, max_new_tokens=new)
            for i, text in zip(rows, tokenizer.batch_decode(ids, skip_special_tokens=True)):
                found[i] = text
        return found

    return work, work


def training(folder, side, device, quick):
    """A step on sentences, each to be written again; teacher forced, fused AdamW. Dropout draws differently, so the
    answers compared are those without: the loss, and the gradients' norm."""
    torch, _, model = models(folder, side, device)
    if side == "ours":
        from scratchformers.training.memory import keep_freed_memory

        keep_freed_memory()
        for parameter in model.parameters():  # copied out of the file, as `train --from` makes it
            parameter.data = parameter.data.clone()
        model.bias.requires_grad_(False)  # as theirs, which is none of its parameters
    ids, keep = batch(folder, sentences()[: 8 if quick else 32], device)
    before = torch.cat([torch.full_like(ids[:, :1], PAD), ids[:, :-1]], 1)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-6, fused=True)

    def loss():
        if side == "ours":
            states = model.decode(before, model.read(ids, keep), keep=keep)[keep]
            return torch.nn.functional.cross_entropy(model.score(states[None])[0], ids[keep])
        labels = ids.masked_fill(~keep, -100)
        return model(input_ids=ids, attention_mask=keep.long(), labels=labels).loss

    def backward():
        found = loss()
        found.backward()
        return float(found.detach())

    def step():
        model.train()
        backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def answer():
        model.eval()
        found = backward()
        grads = [parameter.grad for parameter in learning if parameter.grad is not None]  # fixed positions have none
        squares = sum(float(grad.square().sum()) for grad in grads)
        optimizer.zero_grad(set_to_none=True)
        return [found, squares**0.5]

    return step, answer


ROWS = [
    harness.Row("import", "what a program that translates imports, torch included", code=IMPORT),
    harness.Row("greedy", "8 sentences, 24 new tokens each", "4 sentences, 12 new tokens each", greedy),
    harness.Row("beams", "the same with 4 beams", "the same with 4 beams", beams),
    harness.Row(
        "file",
        "500 sentences from text to text, 32 new tokens each; theirs sorted by length, in batches of 32",
        "40 sentences from text to text, 16 new tokens each; theirs sorted by length, in batches of 32",
        file,
    ),
    harness.Row(
        "training", "a step on 32 pairs of sentences of 4 to 60 words", "a step on 8 such pairs", training, apart=True
    ),
]
