"""A pre-training step of MAE ViT-B beside transformers' model and facebook's recipe, weights random: speed does not
depend on them. The recipe is theirs in this file's words, on timm's blocks, as their repository builds it."""

from functools import partial

import harness
import vit

MAKE = """
import torch, transformers
torch.manual_seed(0)
config = transformers.ViTMAEConfig(norm_pix_loss=True, layer_norm_eps=1e-6)
transformers.ViTMAEForPreTraining(config).save_pretrained({folder!r})
"""
IMPORT = {
    "ours": "import torch; from scratchformers import MAE, load",
    "theirs": "import torch; from transformers import ViTMAEForPreTraining",
}


def ours(folder, device):
    """As `train` has it: its process keeps the memory that a step gave back."""
    from scratchformers.training.memory import keep_freed_memory

    keep_freed_memory()
    model = vit.ours(folder, device)
    for parameter in model.parameters():  # copied out of the file, as `train --from` makes it
        parameter.data = parameter.data.clone()
    return model


def stepping(model, loss, quick):
    """Forward, backward and fused AdamW; the answers compared are the loss and the norm of its gradient."""
    import torch

    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    model.train()

    def backward():
        found = loss()
        found.backward()
        return float(found.detach())

    def step():
        backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def answer():
        found = backward()
        squares = sum(float(parameter.grad.square().sum()) for parameter in learning)
        optimizer.zero_grad(set_to_none=True)
        return [found, squares**0.5]

    return step, answer


def given(device, quick):
    import torch

    images = vit.pictures(device, quick)
    return images, torch.rand(len(images), 196, generator=torch.Generator().manual_seed(2)).to(device)


def transformers(folder, side, device, quick):
    images, noise = given(device, quick)
    if side == "ours":
        model = ours(folder, device)
        return stepping(model, lambda: model(images, noise=noise).loss, quick)
    from transformers import ViTMAEForPreTraining

    model = ViTMAEForPreTraining.from_pretrained(folder).to(device)
    for fixed in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        fixed.requires_grad_(False)  # as in a new model: loading forgets it
    return stepping(model, lambda: model(images, noise=noise).loss, quick)


def recipe(dim, depth, heads, decoder_dim, decoder_depth, decoder_heads):
    """He et al. 2022 as their repository has it: all patches embedded, shuffled by the noise, cut, and restored."""
    import torch
    from timm.models.vision_transformer import Block, PatchEmbed
    from torch import nn

    def blocks(width, count, number):
        norm = partial(nn.LayerNorm, eps=1e-6)
        return nn.ModuleList(Block(width, number, 4.0, qkv_bias=True, norm_layer=norm) for _ in range(count))

    class Recipe(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed = PatchEmbed(224, 16, 3, dim)
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
            self.pos_embed = nn.Parameter(torch.zeros(1, 197, dim), requires_grad=False)
            self.blocks, self.norm = blocks(dim, depth, heads), nn.LayerNorm(dim, eps=1e-6)
            self.decoder_embed = nn.Linear(dim, decoder_dim)
            self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
            self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 197, decoder_dim), requires_grad=False)
            self.decoder_blocks = blocks(decoder_dim, decoder_depth, decoder_heads)
            self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
            self.decoder_pred = nn.Linear(decoder_dim, 768)

        def forward(self, images, noise):
            x = self.patch_embed(images) + self.pos_embed[:, 1:]
            shuffle = noise.argsort(1)
            restore, kept = shuffle.argsort(1), shuffle[:, :49]
            x = torch.gather(x, 1, kept[..., None].expand(-1, -1, x.shape[2]))
            x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], 1)
            for block in self.blocks:
                x = block(x)
            x = self.decoder_embed(self.norm(x))
            hidden = self.mask_token.expand(len(x), 197 - x.shape[1], -1)
            rest = torch.cat([x[:, 1:], hidden], 1)
            rest = torch.gather(rest, 1, restore[..., None].expand(-1, -1, x.shape[2]))
            x = torch.cat([x[:, :1], rest], 1) + self.decoder_pos_embed
            for block in self.decoder_blocks:
                x = block(x)
            painted = self.decoder_pred(self.decoder_norm(x))[:, 1:]
            target = images.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
            mask = torch.ones_like(noise).scatter(1, kept, 0)
            return ((painted - target).square().mean(-1) * mask).sum() / mask.sum()

    return Recipe()


def facebook(folder, side, device, quick):
    images, noise = given(device, quick)
    if side == "ours":
        model = ours(folder, device)
        return stepping(model, lambda: model(images, noise=noise).loss, quick)
    vit.torchvision()
    from scratchformers.checkpoints import tables
    from scratchformers.models.mae import OF_FACEBOOK

    model = vit.ours(folder, device)
    layout = next(one for one in model.layouts if one.rows is OF_FACEBOOK)
    theirs = recipe(768, 12, 12, 512, 8, 16).to(device)
    theirs.load_state_dict(tables.save(layout, model.state_dict(), model.config))
    return stepping(theirs, lambda: theirs(images, noise), quick)


ROWS = [
    harness.Row("import", "what a program with MAE imports, torch included", code=IMPORT),
    harness.Row("transformers", "a pre-training step on 8 pictures", "a step on 2 pictures", transformers, apart=True),
    harness.Row(
        "facebook", "the same beside facebook's recipe", "the same beside facebook's recipe", facebook, apart=True
    ),
]
