"""Load, check and rewrite ONNX graphs."""

from edgemm.graph.model import Model, from_bytes, from_proto, load

__all__ = ["Model", "from_bytes", "from_proto", "load"]
