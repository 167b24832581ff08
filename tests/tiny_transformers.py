"""Tiny models of the transformers library with random weights, saved as folders: real classes, no download."""

from pathlib import Path

import torch

WORDS = ["a", "photo", "of", "red", "blue", "green", "circle", "square", "cat", "dog", "the", "something", "background"]


def clip_tokenizer():
    """A CLIP tokenizer that spells every word; id 0 is left to a character, as OWLv2 takes it for an empty query."""
    from transformers import CLIPTokenizer

    characters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["!", *characters, *[c + "</w>" for c in characters], "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])


def _clip_parts(tokenizer, patch: int) -> dict:
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {
        "text_config": {**shape, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 40},
        "vision_config": {**shape, "image_size": 32, "patch_size": patch},
        "projection_dim": 12,
    }


def save_clip(folder: Path) -> Path:
    """CLIP with 12-wide embeddings of 32-pixel images."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    CLIPModel(CLIPConfig(**_clip_parts(tokenizer, 8))).save_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def save_siglip(folder: Path) -> Path:
    """SigLIP with 16-wide embeddings of 32-pixel images."""
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel, SiglipProcessor

    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    parts = _clip_parts(tokenizer, 8)
    parts["text_config"]["projection_size"] = 16
    config = SiglipConfig(text_config=parts["text_config"], vision_config=parts["vision_config"])
    SiglipModel(config).save_pretrained(folder)
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    SiglipProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def save_owlv2(folder: Path) -> Path:
    """OWLv2 on 32-pixel images: 16 boxes a query."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessorPil, Owlv2Processor

    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    parts = _clip_parts(tokenizer, 8) | {"projection_dim": 16}  # must be the text tower's width
    Owlv2ForObjectDetection(Owlv2Config(**parts)).save_pretrained(folder)
    processor = Owlv2ImageProcessorPil(size={"height": 32, "width": 32})
    Owlv2Processor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def save_grounding_dino(folder: Path) -> Path:
    """Grounding DINO with 8 queries."""
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessorPil,
        GroundingDinoProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    # The model's code names these four token ids by number.
    fixed = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    vocabulary = fixed | {f"[unused{i}]": i for i in range(1030) if i not in fixed.values()}
    vocabulary |= {word: 1030 + i for i, word in enumerate(WORDS)}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64,
            patch_size=4,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            window_size=2,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        ),
        num_queries=8,
        d_model=32,
        encoder_layers=1,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        max_text_len=32,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    GroundingDinoProcessor(
        image_processor=GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}),
        tokenizer=BertTokenizer(vocab=vocabulary),
    ).save_pretrained(folder)
    return folder


_DETR = {
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [16, 16, 16],
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "d_model": 16,
    "num_queries": 10,
    "decoder_in_channels": [16, 16, 16],
    "decoder_ffn_dim": 16,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "num_denoising": 0,
    "hidden_expansion": 0.5,
    "id2label": {0: "cat", 1: "dog"},
    "label2id": {"cat": 0, "dog": 1},
}


def save_rtdetr(folder: Path) -> Path:
    """RT-DETR with 10 queries and the classes cat and dog, on 64-pixel images."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessorPil, RTDetrResNetConfig

    torch.manual_seed(0)
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    RTDetrForObjectDetection(RTDetrConfig(backbone_config=backbone, **_DETR)).save_pretrained(folder)
    RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def save_dfine(folder: Path) -> Path:
    """D-FINE with 10 queries and the classes cat and dog, on 64-pixel images."""
    from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config, RTDetrImageProcessorPil

    torch.manual_seed(0)
    backbone = HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 16, 16],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 16, 16, 16],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    DFineForObjectDetection(DFineConfig(backbone_config=backbone, **_DETR)).save_pretrained(folder)
    RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder
