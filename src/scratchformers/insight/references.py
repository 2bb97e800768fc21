"""What each model is verified against: the class of the library, where to look within both, what both are given.

A model registers with values: a `Reference` under its class's name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scratchformers.beams import beam_search
from scratchformers.checkpoints import openai
from scratchformers.checkpoints.seq2seq import OWN, WRITERS, halves
from scratchformers.generate import generate
from scratchformers.grid import cells, height_width
from scratchformers.insight.inputs import CAPTION, PAIR, PICTURE, TEXT, Inputs
from scratchformers.text import padded

BEAMS = {"greedy": 1, "4 beams": 4}  # ways to write a target
NEW, SPELT = 8, 4  # tokens that are written, sentences that are read

Case = dict[str, Tensor]  # the arguments of one call; `keep` among them marks what is compared
Call = Callable[..., Tensor | Case]  # its output; or several results, of which `output` is the first


@dataclass(frozen=True)
class Reference:
    """A place is a module by its path; `blocks.input` is what the first of `blocks` is given. Theirs may be several
    paths with " or " between, as the library's versions have it, or end in "()": then the call says what stands there.
    """

    kind: Callable[[Any], tuple[str, dict[str, Any]]]  # of our model: the library's class, and what it is told
    places: Callable[[Any], list[tuple[str, str]]]  # of our model: our place, theirs, in order of execution
    cases: Callable[..., dict[str, Case]]  # of a config, a generator, and texts' ids where there is a tokeniser
    ours: Mapping[str, Call]  # ways in which ours computes the same; into `output` one can look
    theirs: Call  # what is named as one of the ways is compared with that, else the output
    published: Mapping[str, tuple[int | None, str]] = field(default_factory=dict)
    """Of presets: bytes, where they are known, and sha256 of the weights."""
    inputs: tuple[Inputs, ...] = (TEXT,)
    configured: bool = True  # whether the library needs a config beside the weights
    scores: Callable[[Any], bool] = lambda model: True  # whether the output of our model scores answers
    real: Callable[[str], str] = lambda place: "keep"  # which argument marks what is compared at a place
    library: str = "transformers"
    others: Mapping[str, "Reference | str"] = field(default_factory=dict)
    """For the layouts a model may have come in that have another reference, or, as a sentence says, none."""


def written(config: Any, generator: torch.Generator, texts: list[list[int]]) -> dict[str, Case]:
    """For a model that writes: rows of 16 tokens, whole, padded on the left, padded on the right; one of 80; a text."""
    columns = min(16, config.length)
    ids = torch.randint(config.vocab, (2, columns), generator=generator)
    left, right = torch.ones_like(ids).bool(), torch.ones_like(ids).bool()
    left[1, : columns // 3], right[0, columns - columns // 4 :] = False, False
    cases = {"whole": {"ids": ids}, "left": {"ids": ids, "keep": left}, "right": {"ids": ids, "keep": right}}
    cases["long"] = {"ids": torch.randint(config.vocab, (1, min(80, config.length)), generator=generator)}
    text = [id for each in texts for id in each][:columns]
    return cases | ({"text": {"ids": torch.tensor([text])}} if text else {})


def with_cache(model: Any, ids: Tensor, keep: Tensor | None = None, *, length: int | None = None) -> Tensor:
    return in_pieces(model, model.new_cache(len(ids), length=length), ids, keep)


def in_pieces(call: Callable[..., Tensor], cache: Any, ids: Tensor, keep: Tensor | None) -> Tensor:
    """In two of them, the second continuing the first."""
    cut = (ids.shape[1] + 1) // 2
    pieces = [slice(0, cut), slice(cut, None)] if ids.shape[1] > 1 else [slice(None)]
    given = [(ids[:, piece], None if keep is None else keep[:, piece]) for piece in pieces]
    return torch.cat([call(part, keep=kept, cache=cache) for part, kept in given], dim=1)


def gpt2_of_transformers(model: Any, ids: Tensor, keep: Tensor | None = None) -> Tensor:
    if keep is None:
        return model(ids).logits
    return model(ids, attention_mask=keep.long(), position_ids=(keep.cumsum(-1) - 1).clamp(min=0)).logits


def gpt2_places(model: Any) -> list[tuple[str, str]]:
    blocks = [(f"blocks.{i}", f"transformer.h.{i}") for i in range(model.config.depth)]
    return [("dropout", "transformer.drop"), *blocks, ("norm", "transformer.ln_f")]


def read_whole(config: Any, generator: torch.Generator, texts: list[list[int]]) -> dict[str, Case]:
    """For a model that reads: pairs of texts, none padded on the left, where the reference's pooler reads padding."""
    cases = {name: case for name, case in written(config, generator, texts).items() if name != "left"}
    for case in cases.values():
        case["segments"] = torch.randint(config.segments, case["ids"].shape, generator=generator).sort(-1).values
    return cases


def everything(model: Any, ids: Tensor, segments: Tensor, keep: Tensor | None = None) -> Tensor:
    """What its head says, or its states; and besides, to be looked at, what its other parts say."""
    states = model.encode(ids, segments=segments, keep=keep)
    pooled = None if model.pooler is None else model.pool(states, keep)
    follows = None if model.next_sentence is None else model.next_sentence(pooled)
    if model.head is None:
        return states if follows is None else follows
    return model.head(states, keep)


def bert_of_transformers(model: Any, ids: Tensor, segments: Tensor, keep: Tensor | None = None) -> Tensor:
    said = {} if keep is None else {"attention_mask": keep.long()}
    return model(ids, token_type_ids=segments, **said)[0]


def bert_kind(model: Any) -> tuple[str, dict[str, Any]]:
    kind = model.layouts[0].describe(model)["architectures"][0]
    return kind, {"add_pooling_layer": model.pooler is not None} if kind == "BertModel" else {}


def bert_places(model: Any) -> list[tuple[str, str]]:
    kind = bert_kind(model)[0]
    body = "" if kind == "BertModel" else "bert."
    blocks = [(f"blocks.{i}", f"{body}encoder.layer.{i}") for i in range(model.config.depth)]
    pooled = model.pooler is not None and not kind.endswith(("MaskedLM", "TokenClassification"))
    pooler = [("pooler", f"{body}pooler.dense")] if pooled else []
    next_sentence = [] if model.next_sentence is None else [("next_sentence", "cls.seq_relationship")]
    return [("dropout", f"{body}embeddings"), *blocks, *pooler, *next_sentence]


def seen(config: Any, generator: torch.Generator, texts: list[list[int]]) -> dict[str, Case]:
    """For a model of pictures: noise of its size."""
    return {"whole": {"images": torch.randn(2, config.channels, *height_width(config.image), generator=generator)}}


def hidden(config: Any, generator: torch.Generator, texts: list[list[int]]) -> dict[str, Case]:
    """For a model that paints what is hidden: beside pictures, the noise that decides on it."""
    (rows, columns), cases = cells(config.image, config.patch), seen(config, generator, texts)
    return {name: {**case, "noise": torch.rand(2, rows * columns, generator=generator)} for name, case in cases.items()}


def _as(model: Any, images: Tensor) -> Tensor:
    """In the precision of the model's weights."""
    return images.to(next(model.parameters()).dtype)


def classified(model: Any, images: Tensor) -> Tensor:
    """What its head says, or its states; and besides, to be looked at, what the pooler says."""
    images = _as(model, images)
    if model.pooler is not None:
        model.pooled(images)
    return model.encode(images) if model.head is None else model(images)


def vit_kind(model: Any) -> tuple[str, dict[str, Any]]:
    kind = model.layouts[0].describe(model)["architectures"][0]
    return kind, {"add_pooling_layer": model.pooler is not None} if kind == "ViTModel" else {}


def stack(ours: str, theirs: tuple[str, ...], depth: int) -> list[tuple[str, str]]:
    """Of blocks that the library's versions name differently."""
    return [(f"{ours}.{i}", " or ".join(f"{name}.{i}" for name in theirs)) for i in range(depth)]


def vit_places(model: Any) -> list[tuple[str, str]]:
    body = "" if model.head is None else "vit."
    pooler = [] if model.pooler is None else [("pooler", f"{body}pooler.dense")]
    before = [("patches", f"{body}embeddings.patch_embeddings"), ("dropout", f"{body}embeddings")]
    blocks = stack("blocks", (f"{body}layers", f"{body}encoder.layer"), model.config.depth)
    return [*before, *blocks, ("norm", f"{body}layernorm"), *pooler]


def timm_places(model: Any) -> list[tuple[str, str]]:
    norm = "fc_norm" if model.config.pool == "patches" else "norm"
    blocks = [(f"blocks.{i}", f"blocks.{i}") for i in range(model.config.depth)]
    return [("patches", "patch_embed"), ("dropout", "pos_drop"), *blocks, ("norm", norm)]


def timm_kind(model: Any) -> tuple[str, dict[str, Any]]:
    return str(model.published.get("architecture")), {}


def pooled(model: Any, images: Tensor) -> Tensor:
    """What its head says, or, as timm does without one, what a head would read."""
    images = _as(model, images)
    if model.head is not None:
        return model(images)
    return model.pool(model.states(images) if model.config.pool == "patches" else model.encode(images))


def painted(model: Any, images: Tensor, noise: Tensor) -> Tensor | Case:
    """What it paints, and how far off that is; of an encoder alone the states, with nothing hidden."""
    if model.decoder is None:
        return model.encode(_as(model, images))
    found = model(_as(model, images), noise=noise)
    return {"output": found.prediction, "loss": found.loss[None]}


def mae_of_transformers(model: Any, images: Tensor, noise: Tensor) -> Tensor | Case:
    """Where nothing is hidden it still shuffles the patches, but not by noise that is sorted."""
    images, body, ratio = _as(model, images), getattr(model, "vit", model), model.config.mask_ratio
    model.config.mask_ratio = 0.0
    try:
        states = body(images, noise=noise.sort(1).values).last_hidden_state
    finally:
        model.config.mask_ratio = ratio
    if body is model:
        return states
    found = model(images, noise=noise)
    return {"output": found.logits, "loss": found.loss[None], "nothing hidden": states}


def mae_kind(model: Any) -> tuple[str, dict[str, Any]]:
    return model.layouts[0].describe(model)["architectures"][0], {"mask_ratio": 0.75}


def mae_places(model: Any) -> list[tuple[str, str]]:
    body, config = "" if model.decoder is None else "vit.", model.config
    blocks = stack("blocks", (f"{body}layers", f"{body}encoder.layer"), config.depth)
    encoder = [("blocks.input", f"{body}embeddings"), *blocks, ("norm", f"{body}layernorm")]
    if model.decoder is None:
        return encoder
    names = "decoder.decoder_layers", "decoder.decoder_encoder.layer"
    after = [("decoder.norm", "decoder.decoder_norm"), ("decoder.out", "decoder.decoder_pred")]
    blocks = stack("decoder.blocks", names, config.decoder_depth)
    return [*encoder, ("decoder.embed", "decoder.decoder_embed"), *blocks, *after]


def captioned(config: Any, generator: torch.Generator, texts: list[list[int]]) -> dict[str, Case]:
    """For a model of pictures and texts: noise, and as many tokens as there are positions, which end early, in the
    middle, and last, with others after the end. There are more texts than pictures."""
    cases = seen(config, generator, texts)
    end = config.vocab - 1 if config.end is None else config.end
    ids = torch.randint(config.vocab - 1, (4, config.length), generator=generator)
    ids += ids >= end  # which stands nowhere else
    for row, place in enumerate([min(2, config.length - 1), *(config.length * k // 3 - 1 for k in (1, 2, 3))]):
        ids[row, place] = end
    return {name: {**case, "ids": ids} for name, case in cases.items()}


def matched(model: Any, images: Tensor, ids: Tensor) -> Tensor:
    """The scores of each picture with each text."""
    return model(_as(model, images), ids)


def clip_of_transformers(model: Any, images: Tensor, ids: Tensor) -> Tensor:
    return model(input_ids=ids, pixel_values=_as(model, images)).logits_per_image


def clip_of_open_clip(model: Any, images: Tensor, ids: Tensor) -> Case:
    """Its texts are projected by a bare matrix, at which nothing can be looked."""
    return {"output": model.get_logits(_as(model, images), ids)[0], "text": model.encode_text(ids)}


def clip_places(model: Any) -> list[tuple[str, str]]:
    config, texts = model.config, "text_model.encoder.layers"
    image = stack("image.blocks", ("vision_model.encoder.layers",), config.image_depth)
    after = [("image.norm", "vision_model.post_layernorm"), ("image", "visual_projection")]
    text = [("text.blocks.input", f"{texts}.input"), *stack("text.blocks", (texts,), config.text_depth)]
    return [("image.first_norm", "vision_model.pre_layrnorm"), *image, *after, *text, ("text", "text_projection")]


def open_clip_places(model: Any) -> list[tuple[str, str]]:
    config, texts = model.config, "transformer.resblocks"
    image = stack("image.blocks", ("visual.transformer.resblocks",), config.image_depth)
    text = [("text.blocks.input", f"{texts}.input"), *stack("text.blocks", (texts,), config.text_depth)]
    return [("image.first_norm", "visual.ln_pre"), *image, ("image", "visual"), *text, ("text", "encode_text()")]


def translated(config: Any, generator: torch.Generator, texts: list[list[int]]) -> dict[str, Case]:
    """For a model that reads a source and writes a target: pairs of 16 and 13 tokens, whole and padded, none on the
    left, where the reference counts padding; one of 80 and 50; texts, those of sources and of targets in turn."""
    vocabularies = {"source": config.vocab, "target": config.target_vocab or config.vocab}

    def drawn(rows: int, *columns: int) -> Case:
        sizes = zip(vocabularies.items(), (min(each, config.length) for each in columns))
        return {name: torch.randint(vocab, (rows, size), generator=generator) for (name, vocab), size in sizes}

    whole = drawn(3, 16, 13)
    ragged = {name: _first(ids, (ids.shape[1], ids.shape[1] // 2 + 1, 1)) for name, ids in whole.items()}
    cases = {"whole": whole, "ragged": _pair(whole, ragged), "long": drawn(1, 80, 50)}
    if texts:
        sides = [padded([(ids[: config.length], []) for ids in texts[i : 2 * SPELT : 2]]) for i in (0, 1)]
        ids, keep = ({name: side[what] for name, side in zip(whole, sides)} for what in ("ids", "keep"))
        cases["text"] = _pair(ids, keep)
    return cases


def _first(ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """A keep of so many tokens in each row."""
    return torch.arange(ids.shape[1])[None] < torch.tensor(lengths)[:, None]


def _pair(ids: Case, keep: Case) -> Case:
    return {**ids, "source_keep": keep["source"], "keep": keep["target"]}


def taught(model: Any, source: Tensor, target: Tensor, source_keep: Tensor | None = None, keep: Tensor | None = None):
    """The scores of what follows each token of a target that is given."""
    return model(source, target, source_keep=source_keep, target_keep=keep)


def padded_on_the_left(model: Any, keep: Tensor | None = None, source_keep: Tensor | None = None, **case: Tensor):
    """The same of rows whose real tokens stand at the end, put back to the beginning."""
    if keep is None or source_keep is None:
        return taught(model, **case)
    (source, source_keep, _), (target, moved, order) = (
        _moved(*each) for each in ((case["source"], source_keep), (case["target"], keep))
    )
    out = taught(model, source, target, source_keep, moved)
    return torch.zeros_like(out).scatter(1, order[..., None].expand_as(out), out)


def _moved(ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With the padding in front, and where each token came from."""
    order = keep.long().argsort(dim=1, stable=True)
    return ids.gather(1, order), keep.gather(1, order), order


def taught_with_cache(
    model: Any,
    source: Tensor,
    target: Tensor,
    source_keep: Tensor | None = None,
    keep: Tensor | None = None,
    *,
    static: bool = False,
) -> Tensor:
    read = model.read(source, source_keep)
    cache = model.new_cache(len(target), length=target.shape[1] if static else None)
    return model.score(in_pieces(partial(model.decode, source=read), cache, target, keep))


def translation(
    model: Any,
    source: Tensor,
    target: Tensor,
    source_keep: Tensor | None = None,
    keep: Tensor | None = None,
    *,
    beams: int,
) -> Tensor:
    """The ids that it writes itself. Where a checkpoint does not say what a target begins with, it is id 0."""
    if model.generation.start is None:
        model.generation = replace(model.generation, start=0)
    write = generate if beams == 1 else partial(beam_search, beams=beams)
    return write(model, source, keep=source_keep, max_new_tokens=_new(model.config.length))


def _new(length: int) -> int:
    return max(1, min(NEW, length - 1))


def translator_of_transformers(
    model: Any, source: Tensor, target: Tensor, source_keep: Tensor | None = None, keep: Tensor | None = None
) -> Case:
    """What it writes itself comes first, for places are looked at when it is taught."""
    real = torch.ones_like(source) if source_keep is None else source_keep.long()
    start = model.generation_config.decoder_start_token_id
    told = {"attention_mask": real, "do_sample": False, "decoder_start_token_id": 0 if start is None else start}
    told["max_new_tokens"] = _new(model.config.max_position_embeddings)
    said = {name: model.generate(source, num_beams=beams, **told) for name, beams in BEAMS.items()}
    kept = {} if keep is None else {"decoder_attention_mask": keep.long()}
    return {"output": model(input_ids=source, attention_mask=real, decoder_input_ids=target, **kept).logits, **said}


def half_places(model: Any, name: str, depth: int) -> list[tuple[str, str]]:
    theirs, found = f"model.{name}.layers", [(f"{name}.blocks.input", f"model.{name}.layers.input")]
    for i in range(depth):
        cross = [(f"{name}.blocks.{i}.cross", f"{theirs}.{i}.encoder_attn")] if name == "decoder" else []
        found += [*cross, (f"{name}.blocks.{i}", f"{theirs}.{i}")]
    return found + ([(f"{name}.norm", f"model.{name}.layer_norm")] if model.config.final_norm else [])


def translator_places(model: Any) -> list[tuple[str, str]]:
    (depth, *_), (decoder_depth, *_) = halves(model.config)
    return [*half_places(model, "encoder", depth), *half_places(model, "decoder", decoder_depth)]


OF_OPEN_CLIP = Reference(
    lambda model: ("CLIP", {}), open_clip_places, captioned, {"output": matched, "without padding": matched},
    clip_of_open_clip, inputs=(CAPTION, PICTURE), library="open_clip",
)  # fmt: skip
OF_TIMM = Reference(
    timm_kind, timm_places, seen, {"output": pooled}, lambda model, images: model(_as(model, images)),
    inputs=(PICTURE,), scores=lambda model: model.head is not None, library="timm",
)  # fmt: skip
NONE = "There is no reference to verify this {} against: transformers has none that {}."
REFERENCES = {
    "GPT2": Reference(
        lambda model: ("GPT2LMHeadModel", {}),
        gpt2_places,
        written,
        {
            "output": lambda model, **case: model(**case),
            "without padding": lambda model, **case: model(**case),
            "with a cache": with_cache,
            "with a static cache": lambda model, **case: with_cache(model, **case, length=case["ids"].shape[1]),
        },
        gpt2_of_transformers,
        published={
            "gpt2": (548105171, "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"),
            "gpt2-medium": (1519984962, "fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd"),
            "distilgpt2": (352824413, "e1ff18884359fe8beb795a5f414feb85a6ce3d929ad019c0d958c039d2b94a1b"),
        },
    ),
    "BERT": Reference(
        bert_kind,
        bert_places,
        read_whole,
        {
            "output": everything,
            "without padding": lambda model, **case: everything(model, **case),
        },
        bert_of_transformers,
        published={
            "base": (440449768, "68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3"),
            "base-cased": (435755784, "1d8bdcee6021e2c25f0325e84889b61c2eb26b843eef5659c247af138d64f050"),
            "large": (1344951957, "28349a5c57338d0dca591bb95de533897c2399095c69d61e09604b46f444a4c4"),
            "tiny": (17739144, "7fb69ad9f6866d8983183c930e33828f326470bf6ad8bbb2ad4ed957a92e9414"),
            "minilm": (90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
        },
    ),
    "ViT": Reference(
        vit_kind,
        vit_places,
        seen,
        {"output": classified},
        lambda model, images: model(_as(model, images))[0],
        inputs=(PICTURE,),
        scores=lambda model: model.head is not None,
        others={
            "timm": OF_TIMM,
            "timm-mean": OF_TIMM,
            "scratchformers-vit": NONE.format("ViT", "reads anything but the class token"),
        },
    ),
    "MAE": Reference(
        mae_kind,
        mae_places,
        hidden,
        {
            "output": painted,
            "nothing hidden": lambda model, images, noise: model.encode(_as(model, images)),
        },
        mae_of_transformers,
        inputs=(PICTURE,),
        scores=lambda model: False,
        others={"scratchformers-mae": NONE.format("MAE", "lacks the class token, or is not square")},
    ),
    "CLIP": Reference(
        lambda model: ("CLIPModel", {}),
        clip_places,
        captioned,
        {"output": matched, "without padding": matched},
        clip_of_transformers,
        published={name: (None, file.sha256) for name, file in openai.MODELS.items()},
        inputs=(CAPTION, PICTURE),
        others={"open_clip": OF_OPEN_CLIP, "openai-clip": replace(OF_OPEN_CLIP, configured=False)},
    ),
    "EncoderDecoder": Reference(
        lambda model: (WRITERS[model.layout], {}),
        translator_places,
        translated,
        {
            "output": taught,
            "without padding": taught,
            "padded on the left": padded_on_the_left,
            "with a cache": taught_with_cache,
            "with a static cache": partial(taught_with_cache, static=True),
            **{name: partial(translation, beams=beams) for name, beams in BEAMS.items()},
        },
        translator_of_transformers,
        inputs=(PAIR,),
        real=lambda place: "source_keep" if place.startswith("encoder.") else "keep",
        others={OWN: NONE.format("EncoderDecoder", "has its norms, its positions and its vocabularies")},
    ),
}
