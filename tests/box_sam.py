"""A SAM that answers a box with the box: real encoder, prompts and frames, and a decoder whose answer is known."""

import torch
from toy import toy_sam

from segment_anything.modeling import Sam


class BoxSam(Sam):
    """Fills each box; its predicted IoU is the box's share of the input square. Counts its runs."""

    def __init__(self) -> None:
        parts = toy_sam()
        super().__init__(parts.image_encoder, parts.prompt_encoder, parts.mask_decoder)
        self.name = "boxes"
        self.encoded: list[int] = []
        self.decoded: list[int] = []
        self.eval()

    def encode_batch(self, images):
        self.encoded.append(len(images))
        return super().encode_batch(images)

    def decode(self, embedding, prompts, multimask_output=True, batch_size=64):
        self.decoded.append(len(prompts))
        return super().decode(embedding, prompts, multimask_output, batch_size)

    def predict_low_res(self, features, points, boxes, masks, multimask_output):
        side = self.mask_input_size
        centres = (torch.arange(side) + 0.5) * self.image_size / side
        x0, y0, x1, y1 = boxes[:, :, None, None].unbind(1)
        inside = (centres > x0) & (centres < x1) & (centres[:, None] > y0) & (centres[:, None] < y1)
        logits = torch.where(inside, 10.0, -10.0)[:, None]
        share = ((x1 - x0) * (y1 - y0) / self.image_size**2)[:, :, 0]
        return logits, share
