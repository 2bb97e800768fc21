"""OpenAI's published CLIP files: their names, addresses and digests (clip.py of github.com/openai/CLIP)."""

from scratchformers.checkpoints import files
from scratchformers.checkpoints.download import Download

PREFIX = "openai/"
_MODELS = "https://openaipublic.azureedge.net/clip/models"
_FILES = {
    "ViT-B/32": ("40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "ViT-B-32.pt"),
    "ViT-B/16": ("5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "ViT-B-16.pt"),
    "ViT-L/14": ("b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "ViT-L-14.pt"),
    "ViT-L/14@336px": ("3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", "ViT-L-14-336px.pt"),
}
MODELS = {name: Download(f"{_MODELS}/{sha256}/{file}", sha256) for name, (sha256, file) in _FILES.items()}
RESNETS = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")  # published beside them
# The files hold no tokeniser.
VOCABULARY = Download(
    f"https://github.com/openai/CLIP/raw/main/clip/{files.CLIP_MERGES}",
    "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
)


def is_name(source: str) -> bool:
    """Whether this is one of OpenAI's names, or was meant as one: `openai/ViT-B/32`. Ids of the hub are not."""
    name = source.removeprefix(PREFIX)
    return source.startswith(PREFIX) and (name in RESNETS or name.startswith("ViT-"))


def published(source: str) -> Download:
    """The weights of that name. ValueError for what was not published, or is not built here."""
    name, known = source.removeprefix(PREFIX), ", ".join(PREFIX + name for name in MODELS)
    if name in RESNETS:
        raise ValueError(f"{source} sees with a ResNet, which is not built here: expected one of {known}.")
    if name not in MODELS:
        raise ValueError(f"{source} is no model that OpenAI published: expected one of {known}.")
    return MODELS[name]
