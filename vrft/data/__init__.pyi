"""Data modules for files in common formats and for generated data."""

from vrft.data.datamodule import VisionData
from vrft.data.datasets.benchmarks import AircraftData, BenchmarkData, CarsData, FlowersData, PetsData
from vrft.data.datasets.digits import DigitsData, RenderedDigitData
from vrft.data.datasets.mazes import MazeData
from vrft.data.datasets.reason_seg import ReasonSegData
from vrft.data.datasets.refcoco import ReferenceData
from vrft.data.datasets.scenes import FreshSceneData, SceneData
from vrft.data.formats.box_table import BoxCsvData
from vrft.data.formats.coco import CocoData
from vrft.data.formats.csv_table import CsvData
from vrft.data.formats.cvat import CvatData
from vrft.data.formats.hub import HubData
from vrft.data.formats.image_folder import ImageFolderData
from vrft.data.formats.label_studio import LabelStudioData
from vrft.data.formats.labelme import LabelMeData
from vrft.data.formats.solutions import JsonlData, SolutionData
from vrft.data.formats.supervisely import SuperviselyData
from vrft.data.formats.via import ViaData
from vrft.data.formats.voc import VocData
from vrft.data.formats.yolo import YoloData
from vrft.data.records import RecordData
from vrft.data.unlabelled import UnlabelledData

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
    "MazeData",
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
