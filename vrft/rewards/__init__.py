"""Verifiable rewards: each is a pure function of one answer and one sample, wrapped in a metric."""

from vrft.rewards.base import Reward
from vrft.rewards.detection import DetectionConfidence, DetectionIoU
from vrft.rewards.format import Format
from vrft.rewards.labels import Accuracy

__all__ = ["Accuracy", "DetectionConfidence", "DetectionIoU", "Format", "Reward"]
