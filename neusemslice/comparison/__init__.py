"""Strategies, metrics and cuts compared on the same models and data, with statistics and a report."""

from neusemslice.comparison.comparing import compare as compare
from neusemslice.comparison.results import Comparison as Comparison
