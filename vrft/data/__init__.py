"""Data modules for files in common formats and for generated data."""

from vrft.data.benchmarks import AircraftData, BenchmarkData, CarsData, FlowersData, PetsData
from vrft.data.coco import CocoData
from vrft.data.csv_table import CsvData
from vrft.data.datamodule import VisionData
from vrft.data.digits import DigitsData, RenderedDigitData
from vrft.data.image_folder import ImageFolderData
from vrft.data.reason_seg import ReasonSegData
from vrft.data.records import RecordData
from vrft.data.refcoco import ReferenceData
from vrft.data.scenes import FreshSceneData, SceneData
from vrft.data.solutions import HubData, JsonlData, SolutionData
from vrft.data.unlabelled import UnlabelledData
from vrft.data.yolo import YoloData

__all__ = [
    "AircraftData",
    "BenchmarkData",
    "CarsData",
    "CocoData",
    "CsvData",
    "DigitsData",
    "FlowersData",
    "FreshSceneData",
    "HubData",
    "ImageFolderData",
    "JsonlData",
    "PetsData",
    "ReasonSegData",
    "RecordData",
    "ReferenceData",
    "RenderedDigitData",
    "SceneData",
    "SolutionData",
    "UnlabelledData",
    "VisionData",
    "YoloData",
]
