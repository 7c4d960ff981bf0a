"""How a pair is trained: two supervised warm starts, then both halves together."""

from nla.training.stages.joint import JointStage
from nla.training.stages.reconstructor import ReconstructorStage
from nla.training.stages.verbalizer import VerbalizerStage

__all__ = ["JointStage", "ReconstructorStage", "VerbalizerStage"]
