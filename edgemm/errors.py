"""Every error that edgemm raises on purpose.

    EdgemmError                 the root: catch this to catch all of edgemm's own errors
    ├── UsageError              the call was wrong: an option, a name, a combination (exit code 2)
    │   ├── RecipeError         a recipe is malformed or names what is not there
    │   └── MissingExtraError   an optional dependency is not installed
    ├── ModelError              an ONNX model cannot be read, is invalid, or is not supported
    ├── CalibrationError        the calibration data or the ranges do not fit the model
    ├── BundleError             a bundle is damaged, tampered with or of another version
    ├── EngineError             an engine cannot be built, loaded or run here
    ├── KernelError             a CUDA kernel cannot be compiled, or was called with what it does not take
    ├── DeviceError             the GPU, its driver or its memory failed
    ├── SourceError             a file, URL, microphone or camera cannot be read
    └── SinkError               results cannot be written

A message says what was found, what was expected and what to do, in one or two sentences.
"""


class EdgemmError(Exception):
    """The root of edgemm's errors; the work failed, for the reason in the message (exit code 1)."""

    exit_code = 1


class UsageError(EdgemmError):
    """The caller asked for something that cannot be: wrong option, name or combination."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe is malformed, or names a tensor, stream or model that does not exist."""


class MissingExtraError(UsageError):
    """An optional dependency is missing; the message holds the command that installs it."""

    def __init__(self, what: str, extra: str, module: str) -> None:
        super().__init__(
            f'{what} needs the Python module "{module}", which is not installed. '
            f'Install it: pip install "edgemm[{extra}]"'
        )


class ModelError(EdgemmError):
    """An ONNX model cannot be read, is not valid, or uses what is not supported."""


class CalibrationError(EdgemmError):
    """Calibration data or ranges are missing, malformed or do not fit the model."""


class BundleError(EdgemmError):
    """A bundle is damaged, tampered with, or of a schema version this edgemm does not know."""


class EngineError(EdgemmError):
    """An inference engine cannot be built, loaded or run on this device."""


class KernelError(EdgemmError):
    """A CUDA kernel cannot be compiled, or was called with arguments that it does not take."""


class DeviceError(EdgemmError):
    """The GPU, its driver or its memory failed."""


class SourceError(EdgemmError):
    """A file, URL, microphone or camera cannot be opened or read."""


class SinkError(EdgemmError):
    """Results cannot be written where they should go."""
