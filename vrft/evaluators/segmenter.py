"""Convert boxes to masks with a Segment Anything model (SAM)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from vrft.boxes import Box
from vrft.evaluators.grounding import Mask, Segmenter


class SamSegmenter(Segmenter):
    """Prompts a SAM checkpoint (arXiv 2304.02643) with the box and returns the mask with the highest predicted IoU."""

    def __init__(self, checkpoint: str = "facebook/sam-vit-huge", device: str = "cpu") -> None:
        """Set the model, which is loaded for the first box.

        Args:
            checkpoint: folder or Hugging Face name of a SAM model.
            device: device to run the model on.
        """
        self.checkpoint, self.device = checkpoint, device
        self.model: Any = None

    @torch.no_grad()
    def segment(self, image: Image.Image, box: Box) -> Mask:
        if self.model is None:
            from transformers import SamModel, SamProcessor

            from vrft.utils.hub import WITH_REPORT, check_loaded, loading
            from vrft.utils.hub_cache import name_or_cached

            with loading("SamSegmenter.checkpoint", self.checkpoint):
                checkpoint = name_or_cached("SamSegmenter.checkpoint", self.checkpoint)
                self.processor = SamProcessor.from_pretrained(checkpoint)
                model, info = SamModel.from_pretrained(checkpoint, use_safetensors=True, **WITH_REPORT)
            check_loaded("SamSegmenter.checkpoint", self.checkpoint, model, info, whole=False)
            self.model = model.eval().to(self.device)
        inputs = self.processor(image, input_boxes=[[[*box]]], return_tensors="pt").to(self.device)
        output = self.model(**inputs)
        masks = self.processor.post_process_masks(
            output.pred_masks.cpu(), inputs["original_sizes"].cpu(), inputs["reshaped_input_sizes"].cpu()
        )[0][0]  # (3, height, width)
        return np.asarray(masks[int(output.iou_scores[0, 0].argmax())], bool)
