"""edgemm: from a trained audio-visual ONNX model to measured, synchronised inference on an embedded GPU.

Importing this package is cheap: it touches no GPU, no device and no heavy dependency. The four calls
`build`, `open`, `run` and `profile` do what the command line does.
"""

__version__ = "0.1.0"
