"""Data modules: where samples come from."""

from vrft.data.coco import CocoData
from vrft.data.datamodule import VisionData
from vrft.data.digits import DigitsData, RenderedDigitData
from vrft.data.image_folder import CsvData, ImageFolderData
from vrft.data.records import RecordData
from vrft.data.scenes import FreshSceneData, SceneData

__all__ = [
    "CocoData",
    "CsvData",
    "DigitsData",
    "FreshSceneData",
    "ImageFolderData",
    "RecordData",
    "RenderedDigitData",
    "SceneData",
    "VisionData",
]
