"""Learning a further task beside those that a network knows: increments, and what is kept from one to the next."""

from neusemslice.increments.deciding import TaskFree as TaskFree
from neusemslice.increments.learning import learn_increment as learn_increment
from neusemslice.increments.measuring import TaskAccuracy as TaskAccuracy
from neusemslice.increments.memory import IncrementMemory as IncrementMemory
from neusemslice.increments.report import Incremented as Incremented
from neusemslice.increments.report import IncrementReport as IncrementReport
from neusemslice.increments.report import task_network as task_network
from neusemslice.increments.samples import Together as Together
