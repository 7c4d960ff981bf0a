"""How a pair is trained: two supervised warm starts, then both halves together."""

from nla.stages.joint import JointStage
from nla.stages.reconstructor import ReconstructorStage
from nla.stages.verbalizer import VerbalizerStage

__all__ = ["JointStage", "ReconstructorStage", "VerbalizerStage"]
