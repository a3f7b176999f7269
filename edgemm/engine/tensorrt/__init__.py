"""TensorRT and TensorRT for RTX: compile, keep, check and run plans."""
