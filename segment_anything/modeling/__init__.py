"""The networks: image encoders, prompt encoder, mask decoder, and `Sam`, which joins them."""

from segment_anything.modeling.decoded import Decoded
from segment_anything.modeling.image_encoder import ImageEncoderViT
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.nano import DrawnPromptEncoder, NanoEncoder
from segment_anything.modeling.prompt_encoder import PromptEncoder
from segment_anything.modeling.sam import Sam
from segment_anything.modeling.tiny_vit import TinyViT
from segment_anything.modeling.transformer import TwoWayTransformer

__all__ = [
    "Decoded",
    "DrawnPromptEncoder",
    "ImageEncoderViT",
    "MaskDecoder",
    "NanoEncoder",
    "PromptEncoder",
    "Sam",
    "TinyViT",
    "TwoWayTransformer",
]
