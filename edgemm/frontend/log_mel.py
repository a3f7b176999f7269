"""Log-mel, MFCC and spectra on the CPU, from a stream or from a whole signal, with the same bits from both.

`push` and `offline` run the same code. A frame is computed by operations that see nothing of the frames beside
it: element-wise ones, one row of a batched DFT, one vector-matrix product of its own, at memory of the same
alignment. So for the same samples, cut into pieces in any way or in one piece, the frames are bit-identical.

Natural logarithms agree with the float64 reference (`edgemm.kernels.log_mel`) and with kaldi-native-fbank within
2e-3 in every band that holds more than 1e-9 of the energy of its frame (of `fft_size` times the sum of the windowed
samples squared, their mean included); below that the rounding of float32 shows, in Kaldi as here. Measured on
voice, noise, tones and noise on an offset: at most 5e-4. Samples must be finite: a NaN spoils the frames that it is
part of, and no other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgemm.errors import UsageError
from edgemm.frontend.opencv import opencv
from edgemm.kernels import log_mel as maths
from edgemm.options import LogMelOptions, MfccOptions, SpectrumOptions, check

Float32 = npt.NDArray[np.float32]
Samples = npt.NDArray[Any]

# The widest vector registers, so that no kernel takes another path for another row.
_ALIGNMENT_FLOATS = 16
# Enough that numpy's cost per call vanishes, few enough that the scratch stays in the L2 cache.
_BLOCK_FRAMES = 64


def _aligned(rows: int, columns: int) -> Float32:
    """Zeros, `[rows, columns]`, with every row at a multiple of 64 bytes."""
    stride = -(-columns // _ALIGNMENT_FLOATS) * _ALIGNMENT_FLOATS
    memory = np.zeros(rows * stride + _ALIGNMENT_FLOATS, np.float32)
    first = -(memory.ctypes.data // memory.itemsize) % _ALIGNMENT_FLOATS
    return memory[first : first + rows * stride].reshape(rows, stride)[:, :columns]


def _constant(value: float) -> Float32:
    """A number as an array without dimensions, which numpy takes faster than a scalar."""
    return np.array(value, np.float32)


def _as_mono(samples: Samples) -> Samples:
    if samples.ndim != 1 or samples.dtype not in (np.float32, np.int16, np.float64):
        raise UsageError(
            f"Samples are {samples.dtype}{list(samples.shape)}; expected one channel, [samples], of float32 or float64 "
            "in [-1, 1], or int16. Mix channels down first."
        )
    return samples.astype(np.float32) if samples.dtype == np.float64 else samples


class _Tables:
    """What a LogMel or a Spectrum works out once from its options."""

    def __init__(self, options: LogMelOptions, filterbank: bool = True) -> None:
        self.options = options
        shape = maths.window(options)
        self.window = shape.astype(np.float32)
        self.filters: Float32 | None = None
        self.first_bin, self.end_bin = 1, (options.fft_size + 1) // 2
        self.bins = options.n_mels
        if filterbank:
            filters = maths.mel_filterbank(options)
            # The bins that some filter weighs, or any one if there is none. Those at 0 and at Nyquist are not looked
            # at: no filter reaches beyond them, so there all are 0 but for rounding.
            used = np.flatnonzero(filters[:, 1 : self.end_bin].any(axis=0)) + 1
            self.first_bin, self.end_bin = (int(used[0]), int(used[-1]) + 1) if len(used) else (1, 2)
            self.bins = self.end_bin - self.first_bin
            self.filters = _aligned(self.bins, options.n_mels)
            self.filters[:] = filters.T[self.first_bin : self.end_bin]
        # The mean m of a frame may be taken off after pre-emphasis: both are linear, and what becomes of a constant
        # m is (1 - preemphasis) m.
        each = (1.0 - options.preemphasis) / options.window_samples
        self.to_mean = np.full((options.window_samples, 1), each, np.float32)
        self.preemphasis = _constant(options.preemphasis)
        # The first sample of a frame is its own predecessor. Most windows are 0 there, and it does not matter.
        self.first_matters = options.preemphasis != 0 and abs(shape[0]) > 1e-9
        self.first_factor = _constant(1.0 - options.preemphasis)
        self.floor = _constant(options.floor)
        # (gain * ln(x) - mean) / std, in one product and one sum.
        self.gain = _constant(maths.log_gain(options) / options.std)
        self.offset = _constant(-options.mean / options.std)
        # Comparing arrays would cost as much as computing with them.
        self.has_gain = float(self.gain) != 1.0
        self.has_offset = float(self.offset) != 0.0
        self.factor = _constant(options.scale)
        self.factor_int16 = _constant(options.scale / 32768.0)


class _Rows:
    """Work space for a number of frames: views of the first rows of memory shared with all other numbers.

    Making a view costs as much as using it, so they are made once for every number of frames.
    """

    __slots__ = (
        "bands",
        "bands_each",
        "ends",
        "first",
        "frames",
        "imaginary",
        "inner",
        "means",
        "means_each",
        "packed",
        "power",
        "power_each",
        "real",
        "spectrum",
        "squares",
        "windowed",
    )

    def __init__(self, count: int, memory: dict[str, Float32], tables: _Tables) -> None:
        options, first, end = tables.options, tables.first_bin, tables.end_bin
        rows = slice(count)
        self.frames = memory["frames"][rows]  # stays zero beyond window_samples
        self.spectrum = memory["spectrum"][rows]
        self.means_each = memory["means"][rows, None]  # [count, 1, 1]
        self.power_each = memory["power"][rows, None]
        self.bands_each = memory["bands"][rows, None]
        # A single frame goes without its dimension, [...] instead of [1, ...]: numpy then takes half the time.
        one = 0 if count == 1 else rows
        self.means = memory["means"][0, 0, ...] if count == 1 else memory["means"][rows]
        self.windowed = memory["frames"][one, ..., : options.window_samples]
        self.first = memory["frames"][one, ..., :1]
        self.packed = memory["spectrum"][one]
        self.squares = memory["squares"][one]
        self.power = memory["power"][one]  # [count, bins in use]
        self.bands = memory["bands"][one]
        self.inner = self.power
        self.ends: tuple[tuple[Float32, Float32], ...] = ()
        if tables.filters is None:
            # 0 Hz is the first of the packed values and, where the size is even, Nyquist the last: both are real.
            self.bands = self.power
            self.inner = self.power[..., first:end]
            self.ends = ((self.power[..., :1], self.squares[..., :1]),)
            if options.fft_size % 2 == 0:
                self.ends += ((self.power[..., -1:], self.squares[..., -1:]),)
        # OpenCV packs a real spectrum as re0, re1, im1, re2, im2, ...
        self.real = self.squares[..., 2 * first - 1 : 2 * end - 1 : 2]
        self.imaginary = self.squares[..., 2 * first : 2 * end : 2]


class _Stream:
    """One signal on its way to frames; knows how to begin and end it."""

    def __init__(self, tables: _Tables) -> None:
        options = tables.options
        self._tables = tables
        self._dft = opencv().dft
        self._dft_rows = opencv().DFT_ROWS
        self._hop = options.hop_samples
        self._window = options.window_samples
        # The buffers hold so many frames that what is carried over when they are full fits before them.
        self._capacity_frames = max(_BLOCK_FRAMES, -(-self._window // self._hop))
        self._capacity = (self._capacity_frames - 1) * self._hop + max(self._window, self._hop)
        # The scaled samples, with the predecessor of the first one before them; the first one is aligned.
        signal = _aligned(1, _ALIGNMENT_FLOATS + self._capacity)[0]
        self._samples = signal[_ALIGNMENT_FLOATS:]
        self._predecessors = signal[_ALIGNMENT_FLOATS - 1 : -1]
        self._emphasised = _aligned(1, self._capacity)[0] if options.preemphasis else self._samples
        self._product = _aligned(1, self._capacity)[0]
        frames = (self._capacity_frames, self._window)
        steps = (self._hop * signal.itemsize, signal.itemsize)
        as_frames = np.lib.stride_tricks.as_strided
        self._raw_frames = as_frames(self._samples, frames, steps, writeable=False)
        self._raw_frames_each = self._raw_frames[:, None]
        self._emphasised_frames = as_frames(self._emphasised, frames, steps, writeable=False)
        size, block = options.fft_size, _BLOCK_FRAMES
        self._memory = {
            "means": np.zeros((block, 1), np.float32),
            "frames": _aligned(block, size),
            "spectrum": _aligned(block, size),
            "squares": _aligned(block, size),
            "power": _aligned(block, tables.bins),
            "bands": _aligned(block, options.n_mels),
        }
        self._rows: dict[int, _Rows] = {}
        # Centred frames: what goes before the first sample and after the last, less what no window covers.
        self._half = 0 if options.edges == "snip" else options.fft_size // 2
        offset = maths.window_offset(options)
        self._before = self._half - offset
        self._after = 0 if options.edges == "snip" else self._half - (options.fft_size - offset - self._window)
        self._reflects = options.edges == "reflect"
        self.reset()

    def reset(self) -> None:
        """Forget the signal."""
        self._filled = 0  # samples in the buffers
        self._next = 0  # the frame of the buffers that comes next
        self._begun = self._half == 0
        self._ends: Float32 = np.empty(0, np.float32)  # reflect: the first, then the last `half + 1` samples
        self._predecessors[0] = 0.0

    def push(self, samples: Samples) -> Float32:
        """Take samples and return the frames that they complete."""
        if self._half:
            samples = self._begin(samples)
        return self._feed(samples)

    def flush(self) -> Float32:
        """End the signal and return the frames that reach beyond it."""
        frames = self._feed(self._end()) if self._half else self._feed(np.empty(0, np.float32))
        self.reset()
        return frames

    def _begin(self, samples: Samples) -> Samples:
        """Put the padding before the first samples; hold those back until there is enough to reflect."""
        if samples.dtype == np.int16:
            samples = samples * np.float32(1 / 32768)
        if not self._reflects:
            if self._begun or not len(samples):
                return samples
            self._begun = True
            return np.concatenate((np.zeros(self._before, np.float32), samples))
        enough = self._half + 1
        self._ends = np.concatenate((self._ends, samples))
        if self._begun:
            self._ends = self._ends[-enough:]
            return samples
        if len(self._ends) < enough:
            return samples[:0]
        self._begun = True
        padded = np.concatenate((self._ends[self._before : 0 : -1], self._ends))
        self._ends = self._ends[-enough:]
        return padded

    def _end(self) -> Float32:
        """What is still to be fed when the signal ends."""
        if self._begun:
            if not self._reflects:
                return np.zeros(self._after, np.float32)
            return self._ends[-2 : -2 - self._after : -1]
        if not len(self._ends):
            return self._ends
        # Too short to be reflected once: numpy reflects it to and fro.
        padded = np.pad(self._ends, self._half, mode="reflect")
        return padded[self._half - self._before : len(padded) - (self._half - self._after)]

    def _feed(self, samples: Samples) -> Float32:
        tables, hop, window, capacity = self._tables, self._hop, self._window, self._capacity
        options = tables.options
        count = len(samples)
        filled = self._filled
        total = (filled + count - window) // hop + 1 - self._next
        bands = np.empty((max(total, 0), options.n_mels), np.float32)
        is_int16 = samples.dtype == np.int16
        as_they_are = not is_int16 and options.scale == 1.0
        taken = done = 0
        while taken < count:
            step = min(count - taken, capacity - filled)
            end = filled + step
            fresh = self._samples[filled:end]
            piece = samples if step == count else samples[taken : taken + step]
            if as_they_are:
                fresh[:] = piece
            else:
                factor = tables.factor_int16 if is_int16 else tables.factor
                np.multiply(piece, factor, out=fresh)
            if self._emphasised is not self._samples:
                product = np.multiply(self._predecessors[filled:end], tables.preemphasis, out=self._product[:step])
                np.subtract(fresh, product, out=self._emphasised[filled:end])
            taken += step
            filled = end
            ready = (filled - window) // hop + 1
            while self._next < ready:
                frames = min(ready - self._next, _BLOCK_FRAMES)
                self._compute(self._next, frames, bands[done : done + frames])
                self._next += frames
                done += frames
            if filled == capacity:
                filled = self._carry_over()
        self._filled = filled
        return bands

    def _carry_over(self) -> int:
        """Move what later frames still need to the front of the full buffers; returns how much that is."""
        carried = self._capacity - self._capacity_frames * self._hop
        self._predecessors[0] = self._samples[self._capacity - carried - 1]
        for buffer in (self._samples, self._emphasised):
            buffer[:carried] = buffer[self._capacity - carried : self._capacity]
        self._next = 0
        return carried

    def _compute(self, start: int, count: int, out: Float32) -> None:
        """Frames `start` to `start + count` of the buffers, into `out`, `[count, n_mels]`."""
        tables = self._tables
        options = tables.options
        rows = self._rows.get(count)
        if rows is None:
            rows = self._rows[count] = _Rows(count, self._memory, tables)
        windowed = rows.windowed
        at = start if count == 1 else slice(start, start + count)
        target = out[0] if count == 1 else out
        source = self._emphasised_frames[at]
        if options.remove_dc:
            # Each frame has a product of its own, here and for the bands: one for all would sum in another order.
            np.matmul(self._raw_frames_each[start : start + count], tables.to_mean, out=rows.means_each)
            source = np.subtract(source, rows.means, out=windowed)
        np.multiply(source, tables.window, out=windowed)
        if tables.first_matters:
            np.multiply(self._raw_frames[at, ..., :1], tables.first_factor, out=rows.first)
            if options.remove_dc:
                np.subtract(rows.first, rows.means, out=rows.first)
            np.multiply(rows.first, tables.window[0], out=rows.first)
        self._dft(rows.frames, rows.spectrum, self._dft_rows)
        np.multiply(rows.packed, rows.packed, out=rows.squares)
        np.add(rows.real, rows.imaginary, out=rows.inner)
        for end, square in rows.ends:
            end[:] = square
        if options.power == 1:
            np.sqrt(rows.power, out=rows.power)
        if tables.filters is not None:
            np.matmul(rows.power_each, tables.filters, out=rows.bands_each)
        if options.log == "none":
            target[:] = rows.bands
        else:
            np.maximum(rows.bands, tables.floor, out=rows.bands)
            np.log(rows.bands, out=target)
        if tables.has_gain:
            np.multiply(target, tables.gain, out=target)
        if tables.has_offset:
            np.add(target, tables.offset, out=target)


class _Framed:
    """Frames of a mono signal, from a stream or from a whole signal."""

    def __init__(self, tables: _Tables) -> None:
        self._tables = tables
        self._stream = _Stream(tables)

    def push(self, samples: Samples) -> Float32:
        """Continue the stream with `samples`, any number of them; return the frames that are complete by now.

        With `edges` "snip" a frame is returned with its last sample. Centred frames come as soon as their window is
        covered; "reflect" first waits for `fft_size // 2 + 1` samples.
        """
        return self._stream.push(_as_mono(samples))

    def flush(self) -> Float32:
        """End the stream and return its last frames (none with `edges` "snip"); the next push begins a new one."""
        return self._stream.flush()

    def reset(self) -> None:
        """Drop the stream, as after a gap in the samples; the next push begins a new one."""
        self._stream.reset()

    def offline(self, samples: Samples) -> Float32:
        """All frames of a whole signal, the same bits as from `push` in pieces and `flush`."""
        stream = _Stream(self._tables)
        frames = stream.push(_as_mono(samples))
        last = stream.flush()
        return np.concatenate((frames, last)) if len(last) else frames


class LogMel(_Framed):
    """Log-mel frames of a mono signal, `[frames, n_mels]` float32.

    Samples are `[samples]`: float32 (float64 is rounded to it) in [-1, 1], or int16, which is divided by 32768.
    The arrays returned are the caller's. Raises UsageError for options or samples that cannot be worked with.

        front_end = LogMel(LogMelOptions())
        frames = front_end.push(samples)  # as often as samples come: the frames complete by now
        frames = front_end.flush()        # the signal has ended: the frames that reach beyond it
        frames = front_end.offline(samples)  # a whole signal at once; does not touch the stream
    """

    def __init__(self, options: LogMelOptions) -> None:
        check(options)
        self.options = options
        super().__init__(_Tables(options))


class Spectrum(_Framed):
    """Frames of the spectrum of a mono signal, `[frames, fft_size // 2 + 1]` float32, from 0 Hz to Nyquist.

    Used like LogMel, with the same rules for samples, ownership and errors. A value differs from that of
    `numpy.fft.rfft` in float64 by less than 1e-6 of the largest that the frame could have, the sum of its windowed
    samples' magnitudes.
    """

    def __init__(self, options: SpectrumOptions) -> None:
        check(options)
        self.options = options
        super().__init__(_Tables(options.as_log_mel(), filterbank=False))


class _Deltas:
    """Cepstra on their way to cepstra with time derivatives, `[frames, n_coefficients * (1 + order)]`."""

    def __init__(self, order: int, coefficients: int) -> None:
        self._order = order
        self._filters = [maths.delta_filter(k).astype(np.float32) for k in range(order + 1)]
        self._reach = order * maths.DELTA_REACH
        self._coefficients = coefficients
        self.reset()

    def reset(self) -> None:
        """Forget the signal."""
        # The frames before the next one that its derivatives need, that one, and those after it.
        self._held: Float32 = np.empty((0, self._coefficients), np.float32)

    def push(self, cepstra: Float32) -> Float32:
        """Take cepstra, return those whose neighbours are all known, with derivatives: `2 * order` frames late."""
        if not len(self._held):
            cepstra = np.concatenate((np.repeat(cepstra[:1], self._reach, axis=0), cepstra))
        held = np.concatenate((self._held, cepstra))
        count = max(0, len(held) - 2 * self._reach)
        columns = np.empty((count, self._order + 1, self._coefficients), np.float32)
        for order, taps in enumerate(self._filters):
            total = columns[:, order]
            total[:] = 0.0
            first = self._reach - len(taps) // 2
            # Tap by tap, so that a frame's sum does not depend on how many frames there are.
            for at, tap in enumerate(taps, first):
                total += tap * held[at : at + count]
        self._held = held[count:].copy()
        return columns.reshape(count, (self._order + 1) * self._coefficients)

    def flush(self) -> Float32:
        """End the signal: the last frame stands for those after it."""
        frames = self.push(np.repeat(self._held[-1:], self._reach, axis=0))
        self.reset()
        return frames


class Mfcc:
    """Cepstra of a mono signal, `[frames, n_coefficients * (1 + deltas)]` float32.

    Used like LogMel, with the same rules for samples, ownership and errors. Time derivatives look ahead: frames come
    `2 * deltas` frames late, the last ones from `flush`.
    """

    def __init__(self, options: MfccOptions) -> None:
        check(options)
        self.options = options
        self._log_mel = LogMel(options.log_mel)
        matrix = maths.dct_matrix(options) * maths.lifter(options)[:, None]
        self._matrix = _aligned(options.log_mel.n_mels, options.n_coefficients)
        self._matrix[:] = matrix.T
        self._deltas = _Deltas(options.deltas, options.n_coefficients)

    def push(self, samples: Samples) -> Float32:
        """Continue the stream with `samples`; return the frames that are complete by now."""
        return self._finish(self._log_mel.push(samples), self._deltas)

    def flush(self) -> Float32:
        """End the stream and return its last frames; the next push begins a new one."""
        frames = self._finish(self._log_mel.flush(), self._deltas)
        return np.concatenate((frames, self._deltas.flush())) if self.options.deltas else frames

    def reset(self) -> None:
        """Drop the stream; the next push begins a new one."""
        self._log_mel.reset()
        self._deltas.reset()

    def offline(self, samples: Samples) -> Float32:
        """All frames of a whole signal, the same bits as from `push` in pieces and `flush`."""
        deltas = _Deltas(self.options.deltas, self.options.n_coefficients)
        frames = self._finish(self._log_mel.offline(samples), deltas)
        return np.concatenate((frames, deltas.flush())) if self.options.deltas else frames

    def _finish(self, log_mel: Float32, deltas: _Deltas) -> Float32:
        # One product for each frame, as in LogMel.
        cepstra = np.matmul(log_mel[:, None], self._matrix)[:, 0]
        return deltas.push(cepstra) if self.options.deltas else cepstra
