"""Tasks: build prompts and target texts, and parse answers."""

from vrft.tasks.base import Task
from vrft.tasks.classification import ClassificationTask
from vrft.tasks.detection import DetectionTask, MultiCategoryDetectionTask
from vrft.tasks.grounding import GroundingTask
from vrft.tasks.mazes import MazeTask
from vrft.tasks.presence import PresenceTask
from vrft.tasks.questions import CountingTask, MultipleChoiceTask

__all__ = [
    "ClassificationTask",
    "CountingTask",
    "DetectionTask",
    "GroundingTask",
    "MazeTask",
    "MultiCategoryDetectionTask",
    "MultipleChoiceTask",
    "PresenceTask",
    "Task",
]
