"""Calibration, Q/DQ placement, sensitivity and the search for a precision."""

from edgemm.quant.agreement import Agreement, Decision, Reference
from edgemm.quant.calibrate import CalibrationData, calibrate
from edgemm.quant.data import HOW_TO_GIVE_DATA, Sample, from_folder
from edgemm.quant.executor import Executor, Runner, zero_states
from edgemm.quant.observers import OBSERVERS, Observer
from edgemm.quant.operators import Form
from edgemm.quant.precision import Candidate, Choice, SearchResult, choose, search
from edgemm.quant.qdq import QuantizedModel, insert_qdq, quantizable_nodes
from edgemm.quant.ranges import Ranges, TensorRange, from_json, load_ranges
from edgemm.quant.sensitivity import LayerSensitivity, sensitivity

__all__ = [
    "HOW_TO_GIVE_DATA",
    "OBSERVERS",
    "Agreement",
    "CalibrationData",
    "Candidate",
    "Choice",
    "Decision",
    "Executor",
    "Form",
    "LayerSensitivity",
    "Observer",
    "QuantizedModel",
    "Ranges",
    "Reference",
    "Runner",
    "Sample",
    "SearchResult",
    "TensorRange",
    "calibrate",
    "choose",
    "from_folder",
    "from_json",
    "insert_qdq",
    "load_ranges",
    "quantizable_nodes",
    "search",
    "sensitivity",
    "zero_states",
]
