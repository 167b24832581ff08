"""Tiny models of the real classes, seeded, for tests."""

from functools import partial

import torch
from torch import nn

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer


def vit_sam(
    image_size: int, width: int, depth: int, heads: int, window: int, global_blocks: tuple[int, ...], channels: int
) -> Sam:
    """A SAM of any size, random, in eval mode."""
    grid = image_size // 16
    encoder = ImageEncoderViT(
        img_size=image_size,
        patch_size=16,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        out_chans=channels,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=window,
        global_attn_indexes=global_blocks,
    )
    prompt_encoder = PromptEncoder(
        embed_dim=channels,
        image_embedding_size=(grid, grid),
        input_image_size=(image_size, image_size),
        mask_in_chans=16,
    )
    decoder = MaskDecoder(
        transformer_dim=channels,
        transformer=TwoWayTransformer(
            depth=2, embedding_dim=channels, num_heads=8, mlp_dim=2048 if channels == 256 else 64
        ),
    )
    return Sam(encoder, prompt_encoder, decoder).eval()


def toy_sam(image_size: int = 64, seed: int = 0) -> Sam:
    """A SAM with an input of 64 pixels and 32 channels: milliseconds a call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = vit_sam(image_size, width=16, depth=2, heads=2, window=3, global_blocks=(1,), channels=32)
    sam.name = "toy"
    return sam


def parity_sam() -> Sam:
    """The toy SAM of the parity data: input 256, width 64, 4 blocks, window 7, 256 channels."""
    return vit_sam(256, width=64, depth=4, heads=4, window=7, global_blocks=(1, 3), channels=256)
