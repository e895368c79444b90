"""Training and evaluation: loops, their events and handlers, data, checkpoints."""

from engine.train.data import ArrayData, Data
from engine.train.events import Count, Event, Filter, Status
from engine.train.loop import Loop, evaluator, trainer
from engine.train.lr_finder import LearningRates, find_learning_rate
from engine.train.module import Module, Trainer
from engine.train.objectives import ObjectiveFunction
from engine.train.state import LoopState, Stage, TrainState

__all__ = [
    "ArrayData",
    "Count",
    "Data",
    "Event",
    "Filter",
    "LearningRates",
    "Loop",
    "LoopState",
    "Module",
    "ObjectiveFunction",
    "Stage",
    "Status",
    "TrainState",
    "Trainer",
    "evaluator",
    "find_learning_rate",
    "trainer",
]
