"""Masked autoencoding, the pre-training of SAM's ViT encoders (MAE, https://arxiv.org/abs/2111.06377).

Three quarters of an image's patches are hidden; the encoder sees the rest, and a small decoder, thrown away afterwards,
draws the hidden ones. Which windows? None: as in ViTDet (https://arxiv.org/abs/2203.16527, section 3), the plain ViT is
pre-trained, every visible token attending to all others without windows and without relative positions; these begin
with the later training, with tables at zero. So the blocks of `ImageEncoderViT` lend only their parameters here.
Pre-training usually runs on small images (224 pixels, 14 x 14 patches): the position table is resampled when the
weights go into SAM.

Letters: B images, H x W patches, N = H * W, V visible patches, C width, D width of the decoder, M heads, P patch side.
"""

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from segment_anything.modeling.image_encoder import Attention, Block, ImageEncoderViT

MASK_RATIO = 0.75


class MaskedAutoencoder(nn.Module):
    """An image encoder with the decoder that teaches it. Only `encoder` is kept."""

    def __init__(
        self,
        encoder: ImageEncoderViT,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        mask_ratio: float = MASK_RATIO,
    ) -> None:
        """Wrap an encoder.

        Args:
            encoder: trained in place. Its neck and its relative positions take no part.
            decoder_dim, decoder_depth, decoder_heads: the paper's by default; a multiple of 4 wide.
            mask_ratio: share of the patches that is hidden.

        Raises:
            ValueError: if the encoder is no plain ViT, or a size is out of range.
        """
        super().__init__()
        if not isinstance(encoder, ImageEncoderViT):
            raise ValueError(
                f"masked autoencoding needs a ViT encoder (vit_b, vit_l, vit_h), got {type(encoder).__name__}; "
                "train other encoders by distillation."
            )
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio must be between 0 and 1, got {mask_ratio}.")
        if decoder_dim % 4 or decoder_dim % decoder_heads:
            raise ValueError(f"decoder_dim must be a multiple of 4 and of decoder_heads, got {decoder_dim}.")
        self.encoder = encoder
        self.mask_ratio = mask_ratio
        width = encoder.patch_embed.proj.out_channels
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.to_decoder = nn.Linear(width, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.decoder = nn.ModuleList(Block(decoder_dim, decoder_heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.to_pixels = nn.Linear(decoder_dim, 3 * encoder.patch_size**2)

    def forward(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Mean square error of the hidden patches, each normalised by its own mean and deviation: (B,).

        Args:
            images: (B, 3, S, S) normalised, S the encoder's image size.
            generator: source of what is hidden; on the CPU.
        """
        tokens = self.encoder.patch_embed(images)  # B H W C
        if self.encoder.pos_embed is not None:
            tokens = tokens + self.encoder.pos_embed
        height, width = tokens.shape[1:3]
        visible = visible_patches(len(images), height * width, self.mask_ratio, generator).to(images.device)  # B V
        latent = self.encode_visible(take(tokens.flatten(1, 2), visible))
        drawn = self.draw(latent, visible, (height, width))
        hidden = torch.ones(visible.shape[0], height * width, device=images.device).scatter_(1, visible, 0.0)
        error = (drawn - patches(images, self.encoder.patch_size, normalised=True)).square().mean(dim=2)  # B N
        return (error * hidden).sum(dim=1) / hidden.sum(dim=1)

    def encode_visible(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, V, C) tokens with positions -> (B, V, C), all attending to all."""
        for block in self.encoder.blocks:
            assert isinstance(block, Block)
            tokens = tokens + attend_all(block.attn, block.norm1(tokens))
            tokens = tokens + block.mlp(block.norm2(tokens))
        normed: torch.Tensor = self.encoder_norm(tokens)
        return normed

    def draw(self, latent: torch.Tensor, visible: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
        """Latent (B, V, C) of the patches `visible` (B, V) -> all patches (B, N, 3 P P)."""
        seen = self.to_decoder(latent)  # B V D
        tokens = self.mask_token.expand(len(seen), size_hw[0] * size_hw[1], -1).to(seen.dtype)
        tokens = tokens.scatter(1, visible[..., None].expand_as(seen), seen)
        tokens = tokens + sine_positions(*size_hw, tokens.shape[2]).to(tokens)
        grid = tokens.unflatten(1, size_hw)  # B H W D
        for block in self.decoder:
            grid = block(grid)
        pixels: torch.Tensor = self.to_pixels(self.decoder_norm(grid.flatten(1, 2)))
        return pixels


def visible_patches(
    batch: int, count: int, mask_ratio: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """(B, V) indices of the patches to show, V = count - round(count * mask_ratio) of each image, in random order."""
    keep = max(1, count - round(count * mask_ratio))
    return torch.rand(batch, count, generator=generator).argsort(dim=1)[:, :keep]


def take(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Tokens (B, N, C) at `index` (B, V): (B, V, C)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))


def patches(images: torch.Tensor, side: int, normalised: bool = False) -> torch.Tensor:
    """(B, 3, H P, W P) -> (B, N, P P 3) pixels of every patch; `normalised`: each with mean 0 and deviation 1."""
    x: torch.Tensor = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # B 3 H P W P
    x = x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    if not normalised:
        return x
    return (x - x.mean(dim=2, keepdim=True)) / (x.var(dim=2, keepdim=True) + 1e-6).sqrt()


def attend_all(attention: Attention, tokens: torch.Tensor) -> torch.Tensor:
    """A block's attention over all tokens (B, V, C), without windows and relative positions."""
    qkv = attention.qkv(tokens).unflatten(2, (3, attention.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # B M V d
    out = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    projected: torch.Tensor = attention.proj(out)
    return projected


def sine_positions(height: int, width: int, channels: int) -> torch.Tensor:
    """(H * W, channels) sine and cosine position code, half for y and half for x (MAE, appendix A.1)."""
    frequency = torch.exp(-math.log(10000.0) * torch.arange(channels // 4) / (channels // 4))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (y, x)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)


def load_mae_weights(encoder: ImageEncoderViT, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Put pre-trained weights into an image encoder of any size; position tables are resampled.

    Args:
        encoder: changed in place; its neck and relative positions stay as they are.
        weights: an encoder's state dict as `MaskedAutoencoder.encoder` has it, or a published MAE checkpoint (names
            `blocks.0.mlp.fc1`, a class token; https://github.com/facebookresearch/mae).

    Returns:
        Names of the encoder's entries that the weights do not have.

    Raises:
        ValueError: if the weights are of another width or depth, or no MAE weights.
    """
    found = {_own_name(name): tensor for name, tensor in weights.items()}
    expected = encoder.state_dict()
    wanted = {name for name in expected if not name.startswith("neck.") and ".rel_pos_" not in name}
    usable = {name: tensor for name, tensor in found.items() if name in wanted}
    if "pos_embed" in usable and encoder.pos_embed is not None:
        usable["pos_embed"] = resample_positions(usable["pos_embed"], encoder.pos_embed.shape[1])
    wrong = [name for name, tensor in usable.items() if tensor.shape != expected[name].shape]
    missing = sorted(wanted - set(usable))
    if wrong or missing:
        what = f"{wrong[0]} has shape {tuple(usable[wrong[0]].shape)}" if wrong else f"{missing[0]} is missing"
        raise ValueError(f"these are no MAE weights for this encoder: {what}. Choose the encoder of the same size.")
    encoder.load_state_dict(usable, strict=False)
    return sorted(set(expected) - set(usable))


def resample_positions(table: torch.Tensor, side: int) -> torch.Tensor:
    """(1, N (+1), C) or (1, h, w, C) position table -> (1, side, side, C); a class token's row is dropped."""
    if table.ndim == 3:
        grid = math.isqrt(table.shape[1])
        table = table[:, table.shape[1] - grid**2 :].unflatten(1, (grid, grid))
    if table.shape[1:3] == (side, side):
        return table
    resized = interpolate(table.permute(0, 3, 1, 2).float(), size=(side, side), mode="bicubic", antialias=False)
    return resized.permute(0, 2, 3, 1).to(table.dtype)


def _own_name(name: str) -> str:
    name = name.removeprefix("module.").removeprefix("encoder.").removeprefix("image_encoder.")
    return name.replace(".mlp.fc1.", ".mlp.lin1.").replace(".mlp.fc2.", ".mlp.lin2.")
