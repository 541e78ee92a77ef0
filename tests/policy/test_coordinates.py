from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vrft.boxes import Coordinates
from vrft.errors import ConfigurationError
from vrft.policy.coordinates import choose_coordinates
from vrft.tasks import ClassificationTask, DetectionTask, GroundingTask

QWEN = SimpleNamespace(image_processor=Qwen2VLImageProcessorPil())
LLAVA = SimpleNamespace(image_processor=CLIPImageProcessorPil())


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("qwen2_vl", "thousandths"),
        ("qwen3_vl_moe", "thousandths"),
        ("qwen2_5_vl", "pixels"),
        ("qwen2_5_omni_thinker", "pixels"),
        ("llava_next_video", "unit"),
        ("vipllava", "unit"),
    ],
)
def test_coordinates_of_a_known_family(model_type: str, expected: Coordinates) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_coordinates(None, model_type, QWEN, DetectionTask()) == expected
        assert choose_coordinates("unit", model_type, QWEN, DetectionTask()) == "unit"


def test_an_unknown_family_gets_thousandths_with_a_warning_that_names_the_setting() -> None:
    for task in (DetectionTask(), GroundingTask(), DetectionTask("Find {query} in {width}")):
        with pytest.warns(UserWarning, match=r"model\.policy\.coordinates: .* a molmo2"):
            assert choose_coordinates(None, "molmo2", LLAVA, task) == "thousandths"


def test_no_warning_if_the_setting_is_given_or_there_are_no_boxes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_coordinates("thousandths", "molmo2", LLAVA, DetectionTask()) == "thousandths"
        assert choose_coordinates(None, "molmo2", LLAVA, ClassificationTask()) == "thousandths"


def test_pixels_of_a_processor_that_resizes_otherwise_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"model\.policy\.coordinates: CLIPImageProcessor"):
        choose_coordinates("pixels", "llava", LLAVA, DetectionTask())
