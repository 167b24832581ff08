"""The names, sizes and files of transformers' `SamModel`, and a `Sam` built from its config.json, without transformers.

The names are those of its state dict in version 5 (https://huggingface.co/docs/transformers/model_doc/sam).
"""

import re
from functools import partial
from typing import Any

from torch import nn

from segment_anything.architectures import ARCHITECTURES, PIXEL_MEAN, PIXEL_STD, Vit, without_initialisation
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.image_encoder import Attention, Block
from segment_anything.modeling.mask_decoder import MLP
from segment_anything.modeling.transformer import TwoWayAttentionBlock

POSITION, POSITION_AGAIN = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)
"""The frequencies of the position code, which `SamModel` has twice."""

_RENAMED = (
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", POSITION),
    (r"^image_encoder\.", "vision_encoder."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"^vision_encoder\.blocks\.", "vision_encoder.layers."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.neck\.0\.", ".neck.conv1."),
    (r"\.neck\.1\.", ".neck.layer_norm1."),
    (r"\.neck\.2\.", ".neck.conv2."),
    (r"\.neck\.3\.", ".neck.layer_norm2."),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
)
"""Patterns of this package's names, in the order in which they are replaced by transformers'."""


def transformers_names(sam: Sam) -> dict[str, str]:
    """The name in transformers' `SamModel` of every entry of the model's state dict.

    Raises:
        ValueError: if the image encoder is not a ViT, which is all that `SamModel` knows.
    """
    if type(sam.image_encoder) is not ImageEncoderViT:
        raise ValueError(
            f"transformers' SamModel has ViT encoders only; {sam.name} has {type(sam.image_encoder).__name__}. "
            'layout="native" keeps any model.'
        )
    depths = {f"{name}.": module.num_layers for name, module in sam.named_modules() if isinstance(module, MLP)}
    return {name: _renamed(name, depths) for name in sam.state_dict()}


def _renamed(name: str, depths: dict[str, int]) -> str:
    for owner, depth in depths.items():
        if name.startswith(owner + "layers."):
            number, leaf = name.removeprefix(owner + "layers.").split(".")
            ends = {0: "proj_in", depth - 1: "proj_out"}
            return f"{owner}{ends.get(int(number), f'layers.{int(number) - 1}')}.{leaf}"
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def transformers_config(sam: Sam) -> dict[str, Any]:
    """The config.json of `SamModel`: only what is not read from the weights' shapes alone."""
    transformers_names(sam)  # refuses other encoders
    encoder, prompt, decoder = sam.image_encoder, sam.prompt_encoder, sam.mask_decoder
    assert isinstance(encoder, ImageEncoderViT)
    assert isinstance(decoder.transformer, TwoWayTransformer)
    blocks = [block for block in encoder.blocks if isinstance(block, Block)]
    attention, layer = blocks[0].attn, decoder.transformer.layers[0]
    assert isinstance(attention, Attention)
    assert isinstance(layer, TwoWayAttentionBlock)
    width = blocks[0].mlp.lin1.in_features
    return {
        "architectures": ["SamModel"],
        "model_type": "sam",
        "vision_config": {
            "hidden_size": width,
            "num_hidden_layers": len(blocks),
            "num_attention_heads": attention.num_heads,
            "mlp_dim": blocks[0].mlp.lin1.out_features,
            "image_size": encoder.img_size,
            "patch_size": encoder.patch_size,
            "window_size": max((block.window_size for block in blocks), default=0),
            "global_attn_indexes": [index for index, block in enumerate(blocks) if not block.window_size],
            "output_channels": prompt.embed_dim,
            "num_pos_feats": prompt.embed_dim // 2,
            "qkv_bias": attention.qkv.bias is not None,
            "use_abs_pos": encoder.pos_embed is not None,
            "use_rel_pos": attention.use_rel_pos,
        },
        "prompt_encoder_config": {
            "hidden_size": prompt.embed_dim,
            "image_size": encoder.img_size,
            "patch_size": encoder.patch_size,
            "mask_input_channels": prompt.mask_downscaling[6].in_channels,
        },
        "mask_decoder_config": {
            "hidden_size": decoder.transformer_dim,
            "mlp_dim": decoder.transformer.mlp_dim,
            "num_hidden_layers": decoder.transformer.depth,
            "num_attention_heads": decoder.transformer.num_heads,
            "attention_downsample_rate": layer.cross_attn_token_to_image.embedding_dim
            // layer.cross_attn_token_to_image.internal_dim,
            "num_multimask_outputs": decoder.num_multimask_outputs,
            "iou_head_depth": decoder.iou_prediction_head.num_layers,
            "iou_head_hidden_dim": decoder.iou_prediction_head.layers[0].out_features,
            "layer_norm_eps": decoder.transformer.norm_final_attn.eps,
        },
    }


def processor_config(sam: Sam) -> dict[str, Any]:
    """preprocessor_config.json: how transformers' `SamProcessor` makes the input."""
    return {
        "image_processor_type": "SamImageProcessor",
        "processor_class": "SamProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"longest_edge": sam.image_size},
        "mask_size": {"longest_edge": sam.mask_input_size},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in sam.pixel_mean.flatten().tolist()],
        "image_std": [value / 255 for value in sam.pixel_std.flatten().tolist()],
        "do_pad": True,
        "pad_size": {"height": sam.image_size, "width": sam.image_size},
        "mask_pad_size": {"height": sam.mask_input_size, "width": sam.mask_input_size},
    }


def build_from_config(config: dict[str, Any]) -> Sam:
    """A model of the sizes in a `SamModel`'s config.json; what it leaves out is that of ViT-B."""
    vision, prompt, decoder = (
        config.get(f"{part}_config") or {} for part in ("vision", "prompt_encoder", "mask_decoder")
    )
    base = ARCHITECTURES["vit_b"]
    assert isinstance(base, Vit)
    side, patch = vision.get("image_size", base.image_size), vision.get("patch_size", base.stride)
    width, depth = vision.get("hidden_size", base.width), vision.get("num_hidden_layers", base.depth)
    channels, cells = vision.get("output_channels", 256), side // patch
    with without_initialisation():
        encoder = ImageEncoderViT(
            img_size=side,
            patch_size=patch,
            embed_dim=width,
            depth=depth,
            num_heads=vision.get("num_attention_heads", base.heads),
            mlp_ratio=(vision.get("mlp_dim") or 4 * width) / width,
            out_chans=channels,
            qkv_bias=vision.get("qkv_bias", True),
            norm_layer=partial(nn.LayerNorm, eps=vision.get("layer_norm_eps", 1e-6)),
            use_abs_pos=vision.get("use_abs_pos", True),
            use_rel_pos=vision.get("use_rel_pos", True),
            window_size=vision.get("window_size", 14),
            global_attn_indexes=tuple(vision.get("global_attn_indexes", base.global_blocks)),
        )
        prompt_encoder = PromptEncoder(
            embed_dim=channels,
            image_embedding_size=(cells, cells),
            input_image_size=(side, side),
            mask_in_chans=prompt.get("mask_input_channels", 16),
        )
        transformer = TwoWayTransformer(
            depth=decoder.get("num_hidden_layers", 2),
            embedding_dim=channels,
            num_heads=decoder.get("num_attention_heads", 8),
            mlp_dim=decoder.get("mlp_dim", 2048),
            attention_downsample_rate=decoder.get("attention_downsample_rate", 2),
        )
        mask_decoder = MaskDecoder(
            transformer_dim=channels,
            transformer=transformer,
            num_multimask_outputs=decoder.get("num_multimask_outputs", 3),
            iou_head_depth=decoder.get("iou_head_depth", 3),
            iou_head_hidden_dim=decoder.get("iou_head_hidden_dim", 256),
        )
    sam = Sam(encoder, prompt_encoder, mask_decoder, list(PIXEL_MEAN), list(PIXEL_STD))
    sam.name = next(
        (n for n, a in ARCHITECTURES.items() if isinstance(a, Vit) and (a.width, a.depth) == (width, depth)), "sam"
    )
    return sam
