"""Repair of a network against attacks or on new samples, by training its critical neurons (paper section 4.2)."""

from neusemslice.readaptation.attacks import attack as attack
from neusemslice.readaptation.judging import Accuracies as Accuracies
from neusemslice.readaptation.readapting import readapt as readapt
from neusemslice.readaptation.report import Readapted as Readapted
from neusemslice.readaptation.report import ReadaptReport as ReadaptReport
from neusemslice.readaptation.trainable import trainable_parameters as trainable_parameters
from neusemslice.readaptation.valid_range import ValidRange as ValidRange
