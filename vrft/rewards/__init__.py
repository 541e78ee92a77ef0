"""Rewards, which score an answer given its sample. Most are pure functions."""

from vrft.rewards.base import Reward
from vrft.rewards.consistency import Consistency
from vrft.rewards.custom import FunctionReward
from vrft.rewards.detection import (
    DetectionConfidence,
    DetectionDIoU,
    DetectionF1,
    DetectionGIoU,
    DetectionIoU,
    PaperConfidence,
)
from vrft.rewards.format import Format
from vrft.rewards.grounding import CentreDistance, GroundingGIoU, GroundingIoU, PaperGroundingGIoU, PointInBox
from vrft.rewards.judge import Judge
from vrft.rewards.labels import Accuracy, CountError
from vrft.rewards.learned import RewardModel
from vrft.rewards.mazes import MazeLegal, MazeMoves, MazeTarget
from vrft.rewards.self_preference import SelfPreference
from vrft.rewards.text import Length, ReasoningPresent, Repetition

__all__ = [
    "Accuracy",
    "CentreDistance",
    "Consistency",
    "CountError",
    "DetectionConfidence",
    "DetectionDIoU",
    "DetectionF1",
    "DetectionGIoU",
    "DetectionIoU",
    "Format",
    "FunctionReward",
    "GroundingGIoU",
    "GroundingIoU",
    "Judge",
    "Length",
    "MazeLegal",
    "MazeMoves",
    "MazeTarget",
    "PaperConfidence",
    "PaperGroundingGIoU",
    "PointInBox",
    "ReasoningPresent",
    "Repetition",
    "Reward",
    "RewardModel",
    "SelfPreference",
]
