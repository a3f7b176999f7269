"""Load, check and rewrite ONNX graphs."""

from edgemm.graph.check import Finding, Report, check
from edgemm.graph.model import Model, from_bytes, from_proto, load

__all__ = ["Finding", "Model", "Report", "check", "from_bytes", "from_proto", "load"]
