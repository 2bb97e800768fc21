"""CLIP (Radford et al. 2021): pictures and texts in one space. Its activation, QuickGELU or GELU, is the checkpoint's.
The text tower is causal, a text's vector its state at end-of-text: what stands after that is never computed."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from scratchformers import clip_text, grid
from scratchformers.checkpoints import clip, vision
from scratchformers.checkpoints.pretrained import Config, Pretrained
from scratchformers.checkpoints.tables import CONVOLUTION, TRANSPOSED, Layout, Published, Row
from scratchformers.nn import ACTIVATIONS, CAUSAL, MLP, Attention, Block, Patches
from scratchformers.ragged import check_texts, unpadded


@dataclass(frozen=True)
class CLIPConfig(Config):
    image: grid.Size = 224  # (height, width), or one number
    patch: int = 32
    channels: int = 3
    image_dim: int = 768
    image_depth: int = 12
    image_heads: int = 12
    image_hidden: int | None = None  # 4 * image_dim
    vocab: int = 49408
    length: int = 77  # tokens of a text at most, its start and end counted
    text_dim: int = 512
    text_depth: int = 12
    text_heads: int = 8
    text_hidden: int | None = None  # 4 * text_dim
    dim: int = 512  # of the vectors that are compared
    activation: str = "quick_gelu"
    end: int | None = None  # the id that ends a text; None: the largest in it does
    eps: float = 1e-5


PRESETS = {name: CLIPConfig(**sizes) for name, sizes in clip.SIZES.items()}  # OpenAI's, open_clip's, tiny


class Tower(nn.Module):
    """Blocks, and the way from the state of one token into the space that both towers share."""

    def __init__(self, config: CLIPConfig, dim: int, depth: int, heads: int, hidden: int | None):
        super().__init__()
        norm, activation = partial(nn.LayerNorm, eps=config.eps), ACTIVATIONS[config.activation]
        self.blocks = nn.ModuleList(
            Block(dim, Attention(dim, heads), MLP(dim, hidden or 4 * dim, activation), norm) for _ in range(depth)
        )
        self.norm, self.project = norm(dim), nn.Linear(dim, config.dim, bias=False)


class ImageTower(Tower):
    def __init__(self, config: CLIPConfig):
        dim, patches = config.image_dim, grid.count(config.image, config.patch)
        super().__init__(config, dim, config.image_depth, config.image_heads, config.image_hidden)
        self.patches = Patches(config.patch, nn.Linear(config.channels * config.patch**2, dim, bias=False))
        self.class_token, self.position = (nn.Parameter(torch.zeros(1, tokens, dim)) for tokens in (1, 1 + patches))
        self.first_norm = nn.LayerNorm(dim, eps=config.eps)

    def forward(self, images: grid.Pixels) -> Float[Tensor, "b d"]:
        x = self.patches(images)
        x = self.first_norm(torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.position)
        for block in self.blocks:
            x = block(x)
        return self.project(self.norm(x[:, 0]))


class TextTower(Tower):
    def __init__(self, config: CLIPConfig):
        super().__init__(config, config.text_dim, config.text_depth, config.text_heads, config.text_hidden)
        self.token = nn.Embedding(config.vocab, config.text_dim)
        self.position = nn.Embedding(config.length, config.text_dim)

    def forward(self, ids: Int[Tensor, "b t"], end: Int[Tensor, "b"]) -> Float[Tensor, "b d"]:
        """Of texts that end at the places `end`: what stands after them is not computed."""
        if len(ids) and not torch.compiler.is_compiling():
            ids = ids[:, : int(end.max()) + 1]
        place = torch.arange(ids.shape[1], device=ids.device)
        rows = unpadded(place <= end[:, None], first=True, causal=True)
        x = self.token(ids) + self.position(place)
        x = x if rows is None else rows.pack(x)
        for block in self.blocks:
            x = block(x, rows or CAUSAL)
        x = x if rows is None else rows.unpack(x)
        return self.project(self.norm(x[torch.arange(len(x), device=x.device), end]))


class CLIP(Pretrained):
    """Pictures (i, channels, height, width) and texts (t, tokens) to how well each suits each (i, t)."""

    config: CLIPConfig
    config_class, presets, resize = CLIPConfig, PRESETS, grid.resize

    def __init__(self, config: CLIPConfig):
        super().__init__(config)
        self.image, self.text = ImageTower(config), TextTower(config)
        self.scale = nn.Parameter(torch.tensor(1 / 0.07).log())  # of cosines, as a logarithm
        clip.initialise(self)

    def encode_image(self, images: grid.Pixels) -> Float[Tensor, "b d"]:
        """Features as published, not normalised. ValueError for pictures of another size than `config.image`."""
        grid.check_pictures(images, self.config.image, self.config.channels)
        return self.image(images)

    def encode_text(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b d"]:
        """Features as published, not normalised. ValueError for a text that is too long, or has no end."""
        check_texts(ids, self.config.length, self.config.end)
        last = ids if self.config.end is None else (ids == self.config.end).int()
        return self.text(ids, last.argmax(-1))

    def forward(self, images: grid.Pixels, ids: Int[Tensor, "t s"]) -> Float[Tensor, "i t"]:
        """The cosine of each picture with each text, times `scale.exp()` (figure 3)."""
        image, text = F.normalize(self.encode_image(images), dim=-1), F.normalize(self.encode_text(ids), dim=-1)
        return self.scale.exp() * image @ text.T


ROWS: list[Row] = [
    ("logit_scale", "scale"),
    ("vision_model.embeddings.class_embedding", "image.class_token", clip.VECTOR),
    ("vision_model.embeddings.position_embedding.weight", "image.position", clip.TABLE),
    ("vision_model.embeddings.patch_embedding", "image.patches.project", CONVOLUTION),
    ("vision_model.pre_layrnorm", "image.first_norm"),  # spelt so in the files
    *clip.hugging_face_blocks("vision_model", "image"),
    ("vision_model.post_layernorm", "image.norm"),
    ("visual_projection", "image.project"),
    ("text_model.embeddings.token_embedding", "text.token"),
    ("text_model.embeddings.position_embedding", "text.position"),
    *clip.hugging_face_blocks("text_model", "text"),
    ("text_model.final_layer_norm", "text.norm"),
    ("text_projection", "text.project"),
    # Buffers of older files, counted from 0.
    (("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids"), None),
]
OF_OPENAI: list[Row] = [
    ("logit_scale", "scale"),
    ("visual.class_embedding", "image.class_token", clip.VECTOR),
    ("visual.positional_embedding", "image.position", clip.TABLE),
    ("visual.conv1", "image.patches.project", CONVOLUTION),
    ("visual.ln_pre", "image.first_norm"),
    *clip.openai_blocks("visual.transformer", "image"),
    ("visual.ln_post", "image.norm"),
    ("visual.proj", "image.project.weight", TRANSPOSED),
    ("token_embedding", "text.token"),
    ("positional_embedding", "text.position.weight"),
    *clip.openai_blocks("transformer", "text"),
    ("ln_final", "text.norm"),
    ("text_projection", "text.project.weight", TRANSPOSED),
    (("input_resolution", "context_length", "vocab_size"), None),  # sizes, which are compared with the shapes
]


def read(published: Published) -> CLIPConfig:
    """config.json of transformers, or open_clip's, to ours. ValueError where it asks for another model than this."""
    return CLIPConfig(**(clip.read_open_clip if "model_cfg" in published else clip.read)(published))


def unread(published: Published) -> CLIPConfig:
    raise ValueError("A file of OpenAI's needs no config.json, and this one's is of another model: take it away.")


shapes = partial(clip.sizes, rows=OF_OPENAI)
# OpenAI's files and open_clip's are saved as transformers'. open_clip does not read that: `export` writes its own too.
openai = partial(Layout, rows=OF_OPENAI, write=clip.write, holds=lambda config: False, preprocess=clip.prepare)
CLIP.layouts = (
    Layout(
        "clip", ROWS, read, clip.write, "vision_model.pre_layrnorm.weight", infer=partial(clip.sizes, rows=ROWS),
        describe=clip.describe, preprocess=vision.prepared(clip.HUGGING_FACE),
        tokenizer=clip_text.read_clip, respelt=True,
    ),
    openai(
        "open_clip", read=read, signature="visual.conv1.weight", without=("input_resolution",), infer=shapes,
        tokenizer=clip_text.read_clip, respelt=True,
    ),
    openai("openai-clip", read=unread, signature="input_resolution", infer=partial(clip.openai_sizes, rows=OF_OPENAI)),
)  # fmt: skip
