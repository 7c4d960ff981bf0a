"""The stages of training: a supervised warm start of each half, then both halves jointly.

May import what `nla.training` may, without its program, callbacks and preflight.
Public: the three stages, each a LightningModule around a pair.
"""

from nla.training.stages.joint import JointStage
from nla.training.stages.reconstructor import ReconstructorStage
from nla.training.stages.verbalizer import VerbalizerStage

__all__ = ["JointStage", "ReconstructorStage", "VerbalizerStage"]
