"""Data modules for files in common formats and for generated data."""

from vrft.data.benchmarks import AircraftData, BenchmarkData, CarsData, FlowersData, PetsData
from vrft.data.box_table import BoxCsvData
from vrft.data.coco import CocoData
from vrft.data.csv_table import CsvData
from vrft.data.cvat import CvatData
from vrft.data.datamodule import VisionData
from vrft.data.digits import DigitsData, RenderedDigitData
from vrft.data.image_folder import ImageFolderData
from vrft.data.label_studio import LabelStudioData
from vrft.data.labelme import LabelMeData
from vrft.data.reason_seg import ReasonSegData
from vrft.data.records import RecordData
from vrft.data.refcoco import ReferenceData
from vrft.data.scenes import FreshSceneData, SceneData
from vrft.data.solutions import HubData, JsonlData, SolutionData
from vrft.data.supervisely import SuperviselyData
from vrft.data.unlabelled import UnlabelledData
from vrft.data.via import ViaData
from vrft.data.voc import VocData
from vrft.data.yolo import YoloData

__all__ = [
    "AircraftData",
    "BenchmarkData",
    "BoxCsvData",
    "CarsData",
    "CocoData",
    "CsvData",
    "CvatData",
    "DigitsData",
    "FlowersData",
    "FreshSceneData",
    "HubData",
    "ImageFolderData",
    "JsonlData",
    "LabelMeData",
    "LabelStudioData",
    "PetsData",
    "ReasonSegData",
    "RecordData",
    "ReferenceData",
    "RenderedDigitData",
    "SceneData",
    "SolutionData",
    "SuperviselyData",
    "UnlabelledData",
    "ViaData",
    "VisionData",
    "VocData",
    "YoloData",
]
