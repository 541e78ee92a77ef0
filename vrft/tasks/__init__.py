"""Tasks: the question, the right answer as text, and how to read an answer."""

from vrft.tasks.base import Task
from vrft.tasks.classification import ClassificationTask
from vrft.tasks.detection import DetectionTask

__all__ = ["ClassificationTask", "DetectionTask", "Task"]
