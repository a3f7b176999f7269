"""edgemm's own operators as TensorRT plugins."""
