"""The CUDA log-mel and MFCC kernels: whole signals in a batch, or many streams, a chunk at a time.

    features = LogMelKernel(LogMelOptions(), runner)
    features(samples, out)                # samples [signals, samples] -> out [signals, frames, features]
    microphones = features.open_stream(streams=1, chunk_samples=160)
    microphones.push(chunk, out, counts)  # one launch: up to `max_frames` new frames a stream

Both make the same frames, bit for bit, however a signal is cut. The kernels are in `kernels/csrc/log_mel.cu`, the
float64 reference in `edgemm.kernels.log_mel`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemm.errors import KernelError, UsageError
from edgemm.kernels.cmvn import Cmvn, GlobalCmvn, SlidingCmvn, check_cmvn, cmvn_reference, global_factors
from edgemm.kernels.launch import Runner, View, expect
from edgemm.kernels.log_mel import (
    DELTA_REACH,
    dct_matrix,
    delta_filter,
    frame_count,
    lifter,
    log_gain,
    log_mel_reference,
    mel_filterbank,
    window,
    window_offset,
)
from edgemm.options import LogMelOptions, MfccOptions, check
from edgemm.types import Array

FFT_SIZES = (256, 512, 1024, 2048)
MAX_MELS = 256
_WARPS = 4
_THREADS = 32 * _WARPS
_MAX_GRID_Y = 65535
_EDGES = {"snip": 0, "zero": 1, "reflect": 2}
_SAMPLES = ("float32", "int16")
_OUTPUTS = ("float32", "float16")


class _Plan(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("window", "twiddle", "band_first", "band_offset", "band_weight")),
        *((name, ctypes.c_void_p) for name in ("dct", "shift", "gain")),
        *((name, ctypes.c_int) for name in ("window_samples", "hop_samples", "window_offset", "n_mels", "n_features")),
        *((name, ctypes.c_int) for name in ("edges", "remove_dc", "magnitude", "take_log")),
        *(
            (name, ctypes.c_float)
            for name in ("preemphasis", "scale", "floor", "log_gain", "mel_mean", "mel_inverse_std")
        ),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("plan", _Plan),
        *((name, ctypes.c_void_p) for name in ("samples", "lengths", "out", "out_frames")),
        ("stride", ctypes.c_longlong),
        *((name, ctypes.c_int) for name in ("length", "max_frames", "samples_int16", "out_half")),
    )


class _Stream(ctypes.Structure):
    _fields_ = (
        ("plan", _Plan),
        *(
            (name, ctypes.c_void_p)
            for name in ("chunk", "chunk_lengths", "ring", "counters", "history", "sums", "ready")
        ),
        *((name, ctypes.c_void_p) for name in ("out", "out_frames")),
        ("chunk_stride", ctypes.c_longlong),
        *((name, ctypes.c_int) for name in ("chunk_samples", "samples_int16", "out_half", "max_frames")),
        *((name, ctypes.c_int) for name in ("ring_mask", "history_mask", "ready_mask")),
        *((name, ctypes.c_int) for name in ("cmvn_frames", "cmvn_variance", "deltas", "flush")),
    )


class _SlidingCmvn(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("in", "out", "frames")),
        *((name, ctypes.c_int) for name in ("max_frames", "n_features", "cmvn_frames", "cmvn_variance")),
    )


class _Deltas(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("in", "out", "frames")),
        *((name, ctypes.c_int) for name in ("max_frames", "n_features", "deltas", "out_half")),
    )


@dataclass(frozen=True)
class _Workspace:
    """Features between the kernels of a batch, of at most so many signals and frames."""

    first: View
    second: View
    frames: View
    elements: int
    signals: int


def features_reference(samples: Array, options: LogMelOptions | MfccOptions, cmvn: Cmvn | None = None) -> Array:
    """What the kernels compute, in float64, for one whole signal `[samples]`: `[frames, features]`.

    Log-mel, or its cepstra; then CMVN; then the derivatives of the normalised cepstra (Kaldi's `apply-cmvn |
    add-deltas`).
    """
    if isinstance(options, LogMelOptions):
        return cmvn_reference(log_mel_reference(samples, options), cmvn)
    cepstra = log_mel_reference(samples, options.log_mel) @ dct_matrix(options).T * lifter(options)
    columns = [cmvn_reference(cepstra, cmvn)]
    for order in range(1, options.deltas + 1):
        taps = delta_filter(order)
        reach = len(taps) // 2
        at = np.arange(len(cepstra))[:, None] + np.arange(-reach, reach + 1)
        neighbours = columns[0][np.clip(at, 0, max(len(cepstra) - 1, 0))]  # [frames, taps, n_coefficients]
        columns.append(np.einsum("ftc,t->fc", neighbours, taps))
    return np.concatenate(columns, axis=1)


def band_tables(filters: Array) -> tuple[Array, Array, Array]:
    """A filterbank `[n_mels, bins]` as the first bin of each band `[n_mels]`, offsets `[n_mels + 1]`, and weights.

    A band holds its weights from the first to the last that is not zero; an empty band holds none.
    """
    first, offsets, weights = [], [0], []
    for row in filters:
        bins = np.flatnonzero(row)
        start, stop = (int(bins[0]), int(bins[-1]) + 1) if len(bins) else (0, 0)
        first.append(start)
        weights.append(row[start:stop])
        offsets.append(offsets[-1] + stop - start)
    return np.array(first, np.int32), np.array(offsets, np.int32), np.concatenate(weights).astype(np.float32)


class LogMelKernel:
    """Log-mel frames (`LogMelOptions`) or cepstra (`MfccOptions`) of a batch of signals.

    `cmvn` normalises each feature by given or by recent statistics. The tables are placed once, here.
    """

    def __init__(self, options: LogMelOptions | MfccOptions, runner: Runner, *, cmvn: Cmvn | None = None) -> None:
        check(options)
        self.options = options
        self.cmvn = cmvn
        self.log_mel = options if isinstance(options, LogMelOptions) else options.log_mel
        self.deltas = 0 if isinstance(options, LogMelOptions) else options.deltas
        self._base_features = self.log_mel.n_mels if isinstance(options, LogMelOptions) else options.n_coefficients
        if self.log_mel.fft_size not in FFT_SIZES:
            raise KernelError(
                f"The CUDA log-mel kernel has no FFT of {self.log_mel.fft_size} points; it has "
                f"{', '.join(map(str, FFT_SIZES))}. Set fft_size to one of them."
            )
        if self.log_mel.n_mels > MAX_MELS:
            raise KernelError(f"The CUDA log-mel kernel takes up to {MAX_MELS} bands; found {self.log_mel.n_mels}.")
        check_cmvn(cmvn, self._base_features)
        self._runner = runner
        self._tables: list[View] = []
        self._plan = self._make_plan()
        self._workspace: _Workspace | None = None
        points = self.log_mel.fft_size // 2
        # WarpMemory of the kernel: the FFT with its padding, and the bands
        self._shared_bytes = _WARPS * (8 * (points + points // 8) + 4 * MAX_MELS)

    @property
    def feature_count(self) -> int:
        """The columns of a frame: bands, or cepstra with their derivatives."""
        return self._base_features * (1 + self.deltas)

    @property
    def rests_on_neighbours(self) -> bool:
        """True if a frame depends on others (sliding CMVN, derivatives): a batch then takes a launch for each step."""
        return isinstance(self.cmvn, SlidingCmvn) or self.deltas > 0

    def frame_count(self, sample_count: int) -> int:
        """The frames of a whole signal of `sample_count` samples."""
        return frame_count(sample_count, self.log_mel)

    def __call__(
        self, samples: Any, out: Any, *, lengths: Any = None, out_frames: Any = None, stream: Any = None
    ) -> None:
        """Compute the frames of whole signals.

        `samples` is `[signals, samples]`, float32 in [-1, 1] or int16, contiguous within a row; `lengths` `[signals]`
        int32 says how many of each count. `out` is `[signals, frames, feature_count]`, float32 or float16,
        contiguous, with `frame_count(samples)` frames or more: rows beyond a signal's frames are zero. `out_frames`
        `[signals]` int32 gets the number of frames. The arrays are the caller's until the stream has passed. Raises
        KernelError before any launch if one does not fit.
        """
        given = self._runner.view(samples, "samples")
        expect(given, dtypes=_SAMPLES, shape=(None, None), contiguous=False)
        signals, length = given.shape
        if given.size and length > 1 and given.strides[1] != given.dtype.itemsize:
            raise KernelError(f"samples has strides {list(given.strides)}; expected each row to be contiguous.")
        stride = given.strides[0] // given.dtype.itemsize
        if given.size and signals > 1 and (given.strides[0] % given.dtype.itemsize or stride < 0):
            raise KernelError(f"samples has a row stride of {given.strides[0]} bytes; expected whole samples, forward.")
        target = self._runner.view(out, "out")
        expect(target, dtypes=_OUTPUTS, shape=(signals, None, self.feature_count), written=True)
        max_frames = target.shape[1]
        if max_frames < self.frame_count(length):
            raise KernelError(
                f"out has room for {max_frames} frames; "
                f"{length} samples make {self.frame_count(length)}. Make it longer."
            )
        if signals > _MAX_GRID_Y or length >= 1 << 30:
            raise KernelError(
                f"Found {signals} signals of {length} samples; expected at most {_MAX_GRID_Y}, below 2^30."
            )
        limits = self._optional(lengths, "lengths", signals)
        counts = self._optional(out_frames, "out_frames", signals, written=True)
        if target.size == 0:
            if counts is not None and counts.size:
                self._runner.clear(counts, stream)
            return
        params = _Batch(
            plan=self._plan,
            samples=given.pointer if given.size else None,
            stride=stride,
            length=length,
            max_frames=max_frames,
        )
        params.lengths = limits.pointer if limits else None
        params.samples_int16 = int(given.dtype == np.int16)
        work = self._reserved(signals, max_frames) if self.rests_on_neighbours else None
        if counts is None and work is not None:
            counts = work.frames
        params.out_frames = counts.pointer if counts else None
        params.out = work.first.pointer if work else target.pointer
        params.out_half = int(work is None and target.dtype == np.float16)
        grid = (-(-max_frames // _WARPS), signals)
        self._launch(f"edgemm_log_mel_{self.log_mel.fft_size}", params, grid, stream, self._shared_bytes)
        if work is not None and counts is not None:
            self._after(work, counts, target, max_frames, signals, stream)

    def reserve(self, signals: int, max_frames: int) -> None:
        """Allocate what a batch of this size needs between its kernels: before a capture in a graph."""
        if self.rests_on_neighbours:
            self._reserved(signals, max_frames)

    def open_stream(self, streams: int, chunk_samples: int, *, max_frames: int | None = None) -> LogMelStream:
        """The state of `streams` streams that come in chunks of at most `chunk_samples` samples."""
        return LogMelStream(self, streams, chunk_samples, max_frames)

    def _optional(self, array: Any, what: str, signals: int, *, written: bool = False) -> View | None:
        if array is None:
            return None
        view = self._runner.view(array, what)
        expect(view, dtypes=("int32",), shape=(signals,), written=written)
        return view

    def _reserved(self, signals: int, max_frames: int) -> _Workspace:
        elements = signals * max_frames * self._base_features
        work = self._workspace
        if work is None or work.elements < elements or work.signals < signals:
            empty = np.zeros(elements, np.float32)
            self._workspace = work = _Workspace(
                self._runner.place(empty),
                self._runner.place(empty),
                self._runner.place(np.zeros(signals, np.int32)),
                elements,
                signals,
            )
        return work

    def _after(self, work: _Workspace, counts: View, target: View, max_frames: int, signals: int, stream: Any) -> None:
        """Sliding CMVN, then derivatives, and the conversion to the output's type."""
        features, ready = self._base_features, work.first
        if isinstance(self.cmvn, SlidingCmvn):
            normalise = _SlidingCmvn(out=work.second.pointer, frames=counts.pointer, max_frames=max_frames)
            setattr(normalise, "in", ready.pointer)
            normalise.n_features, normalise.cmvn_frames = features, self.cmvn.frames
            normalise.cmvn_variance = int(self.cmvn.variance)
            self._launch("edgemm_sliding_cmvn", normalise, (-(-features // _THREADS), signals), stream, 0)
            ready = work.second
        derive = _Deltas(out=target.pointer, frames=counts.pointer, max_frames=max_frames, n_features=features)
        setattr(derive, "in", ready.pointer)
        derive.deltas, derive.out_half = self.deltas, int(target.dtype == np.float16)
        self._launch("edgemm_deltas", derive, (-(-max_frames * features // _THREADS), signals), stream, 0)

    def _launch(self, kernel: str, params: ctypes.Structure, grid: tuple[int, int], stream: Any, shared: int) -> None:
        self._runner.launch("log_mel", kernel, params, grid=grid, block=(_THREADS,), shared_bytes=shared, stream=stream)

    def _place(self, array: Array) -> int:
        self._tables.append(self._runner.place(array))
        return self._tables[-1].pointer

    def _make_plan(self) -> _Plan:
        options = self.log_mel
        angle = -2.0 * np.pi * np.arange(options.fft_size) / options.fft_size
        first, offsets, weights = band_tables(mel_filterbank(options))
        plan = _Plan(
            window=self._place(window(options).astype(np.float32)),
            twiddle=self._place(np.stack((np.cos(angle), np.sin(angle)), axis=1).astype(np.float32)),
            band_first=self._place(first),
            band_offset=self._place(offsets),
            band_weight=self._place(weights if len(weights) else np.zeros(1, np.float32)),
            window_samples=options.window_samples,
            hop_samples=options.hop_samples,
            window_offset=window_offset(options),
            n_mels=options.n_mels,
            n_features=self._base_features,
            edges=_EDGES[options.edges],
            remove_dc=int(options.remove_dc),
            magnitude=int(options.power == 1),
            take_log=int(options.log != "none"),
            preemphasis=options.preemphasis,
            scale=options.scale,
            floor=options.floor,
            log_gain=log_gain(options),
            mel_mean=options.mean,
            mel_inverse_std=1.0 / options.std,
        )
        if isinstance(self.options, MfccOptions):
            liftered = dct_matrix(self.options) * lifter(self.options)[:, None]
            plan.dct = self._place(np.ascontiguousarray(liftered.T).astype(np.float32))  # [n_mels, n_coefficients]
        if isinstance(self.cmvn, GlobalCmvn):
            shift, gain = global_factors(self.cmvn)
            plan.shift, plan.gain = self._place(shift.astype(np.float32)), self._place(gain.astype(np.float32))
        return plan


class LogMelStream:
    """Streams in progress: their carried samples, positions and histories live where the kernel runs.

    A launch reads no state from the host, so it can be captured in a CUDA graph once and replayed for every chunk.
    """

    def __init__(self, kernel: LogMelKernel, streams: int, chunk_samples: int, max_frames: int | None) -> None:
        if streams < 1 or not 1 <= chunk_samples < 1 << 24:
            raise UsageError(
                f"Found {streams} streams in chunks of {chunk_samples} samples; expected at least 1, chunks below 2^24."
            )
        options = kernel.log_mel
        self.streams = streams
        self.chunk_samples = chunk_samples
        self._kernel = kernel
        self._runner = kernel._runner
        # From a frame's first sample to the one that settles it; a centred frame reflects and waits for half an FFT.
        reach = options.window_samples if options.edges == "snip" else options.fft_size + 1
        carried = reach + options.hop_samples
        delay = DELTA_REACH * kernel.deltas
        # A chunk settles these frames, and a flush those that waited for samples and for derivatives.
        self.most_frames = (chunk_samples + carried) // options.hop_samples + 1 + delay
        self.max_frames = self.most_frames if max_frames is None else max_frames
        if self.max_frames < self.most_frames:
            raise UsageError(
                f"Found max_frames {max_frames}; a chunk may make {self.most_frames} frames. Give as many."
            )
        features = kernel._base_features
        sliding = kernel.cmvn if isinstance(kernel.cmvn, SlidingCmvn) else None
        ring = _power_of_two(carried + chunk_samples)
        history = _power_of_two(sliding.frames + self.most_frames) if sliding else 0
        ready = _power_of_two(2 * delay + 1 + self.most_frames) if kernel.rests_on_neighbours else 0
        self._counters = self._zeros((streams, 3), np.int64)
        self._ring = self._zeros((streams, ring), np.float32)
        self._history = self._zeros((streams, history, features), np.float32)
        self._sums = self._zeros((streams, 2 if sliding else 0, features), np.float64)
        self._ready = self._zeros((streams, ready, features), np.float32)
        self._params = _Stream(
            plan=kernel._plan,
            ring=self._ring.pointer,
            counters=self._counters.pointer,
            history=self._history.pointer if sliding else None,
            sums=self._sums.pointer if sliding else None,
            ready=self._ready.pointer if ready else None,
            ring_mask=ring - 1,
            history_mask=history - 1,
            ready_mask=ready - 1,
            cmvn_frames=sliding.frames if sliding else 0,
            cmvn_variance=int(sliding.variance) if sliding else 0,
            deltas=kernel.deltas,
        )

    def push(
        self,
        chunk: Any,
        out: Any,
        out_frames: Any,
        *,
        chunk_lengths: Any = None,
        flush: bool = False,
        stream: Any = None,
    ) -> None:
        """Take the next chunk of every stream and compute the frames that are settled by it, in one launch.

        `chunk` is `[streams, samples]` with up to `chunk_samples` samples, float32 or int16, rows contiguous;
        `chunk_lengths` `[streams]` int32 says how many of each count. `out` is `[streams, max_frames or more,
        feature_count]`, float32 or float16; stream s gets `out_frames[s]` rows, and the others stay as they are.
        `flush` ends every stream: the frames that waited for samples or for derivatives come out; then `reset`.
        Raises KernelError before any launch.
        """
        kernel = self._kernel
        given = self._runner.view(chunk, "chunk")
        expect(given, dtypes=_SAMPLES, shape=(self.streams, None), contiguous=False)
        count = given.shape[1]
        if count > self.chunk_samples:
            raise KernelError(
                f"chunk has {count} samples; expected at most {self.chunk_samples}, as the stream was opened."
            )
        if given.size and count > 1 and given.strides[1] != given.dtype.itemsize:
            raise KernelError(f"chunk has strides {list(given.strides)}; expected each row to be contiguous.")
        target = self._runner.view(out, "out")
        expect(target, dtypes=_OUTPUTS, shape=(self.streams, None, kernel.feature_count), written=True)
        if target.shape[1] < self.max_frames:
            raise KernelError(f"out has room for {target.shape[1]} frames; expected {self.max_frames} (`max_frames`).")
        counts = self._runner.view(out_frames, "out_frames")
        expect(counts, dtypes=("int32",), shape=(self.streams,), written=True)
        limits = kernel._optional(chunk_lengths, "chunk_lengths", self.streams)
        params = self._params
        params.chunk = given.pointer if given.size else None
        params.out, params.out_frames = target.pointer, counts.pointer
        params.chunk_lengths = limits.pointer if limits else None
        params.chunk_stride = given.strides[0] // given.dtype.itemsize
        params.chunk_samples = count
        params.samples_int16 = int(given.dtype == np.int16)
        params.out_half = int(target.dtype == np.float16)
        params.max_frames = target.shape[1]
        params.flush = int(flush)
        name = f"edgemm_log_mel_stream_{kernel.log_mel.fft_size}"
        kernel._launch(name, params, (self.streams, 1), stream, kernel._shared_bytes)

    def reset(self, stream: Any = None) -> None:
        """Start all streams anew. It can be captured in a graph."""
        self._runner.clear(self._counters, stream)

    def _zeros(self, shape: tuple[int, ...], dtype: Any) -> View:
        return self._runner.place(np.zeros(shape, dtype))


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()
