"""Calibration, Q/DQ placement, sensitivity and the search for a precision."""

from edgemm.quant.agreement import Agreement, Reference
from edgemm.quant.calibrate import CalibrationData, calibrate
from edgemm.quant.data import Sample, from_folder
from edgemm.quant.executor import Executor, Runner
from edgemm.quant.observers import OBSERVERS, Observer
from edgemm.quant.operators import Form
from edgemm.quant.precision import Candidate, Choice, SearchResult, choose, search
from edgemm.quant.qdq import QuantizedModel, insert_qdq, quantizable_nodes
from edgemm.quant.ranges import Ranges, TensorRange, from_json, load_ranges
from edgemm.quant.sensitivity import LayerSensitivity, sensitivity

__all__ = [
    "OBSERVERS",
    "Agreement",
    "CalibrationData",
    "Candidate",
    "Choice",
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
]
