"""Read the audio of a clip: decode it to mono, place it by its timestamps, and resample it.

`media_mmbalance` opens the file and passes each packet to the reader of its stream. Packet timestamps become seconds
on the clip's clock, `t = pts * time_base - origin`, where `origin` is the start time of the container, so that audio
and frames share one zero.
"""

from math import gcd
from typing import Any

import numpy as np

from .media_request_mmbalance import MediaError, MediaRequest


try:  # optional, so that a published model loads without it; needed only to read media files
    import av
except ImportError:
    av = None  # type: ignore[assignment]

SOUND_LEAD = 0.05  # seconds of audio read before and after a window, so that no filter edge falls inside it
SOUND_GAP = 0.05  # seconds; smaller gaps between audio timestamps are rounding errors (FLV counts in milliseconds)


class SoundReader:
    """Decodes one audio stream to mono and places every chunk by its timestamp.

    How this works:

    1. `feed` decodes each packet to frames and averages their channels to mono chunks `(S,)`, each kept with its time
       in seconds on the clip's clock.
    2. `wave` joins the chunks, starting shortly before the window. If a chunk starts more than `SOUND_GAP` after the
       end of the previous one, silence fills the gap: streams with lost packets or pauses in recording would
       otherwise run ahead of the frames. Smaller gaps and overlaps are rounding errors of the timestamps.
    3. The joined wave is resampled. The first sample read is a whole number of resampling periods from the start of
       the clip (see `aligned_span`), so the result equals the same part of the resampled complete clip.
    4. The samples outside the window, which only the filter needs, are cut off.
    """

    def __init__(self, stream: Any, request: MediaRequest):
        self.stream, self.request = stream, request
        # FFmpeg's converter packs the samples: PyAV reads past the end of a planar frame with more than 8 channels.
        self.packer = av.AudioResampler(format="flt")
        self.rate = 0
        self.chunks: list[tuple[float | None, np.ndarray]] = []
        self.errors = 0
        self.held = 0  # bytes
        if stream is not None:
            self.base = float(stream.time_base)
            stream.codec_context.thread_count = request.threads

    def feed(self, packet: Any, origin: float) -> None:
        try:
            frames = packet.decode()
        except (av.error.FFmpegError, ValueError):
            self.errors += 1
            return
        for frame in frames:
            if self.rate and frame.sample_rate != self.rate:
                self.errors += 1  # the rate changes within the stream: a different recording starts here
                continue
            self.rate = frame.sample_rate
            time = None if frame.time is None else frame.time - origin
            try:
                parts = self.packer.resample(frame)
            except (av.error.FFmpegError, ValueError):
                self.errors += 1  # the channel layout changes within the stream
                continue
            for part in parts:
                chunk = part.to_ndarray().reshape(-1, part.layout.nb_channels).mean(axis=1, dtype=np.float32)
                self.held += chunk.nbytes
                self.request.limits.check_bytes(self.request.name, self.held, "decoded audio")
                self.chunks.append((time, chunk))
                time = None if time is None else time + len(chunk) / self.rate

    def wave(self, notes: list[str]) -> tuple[np.ndarray | None, int | None, float]:
        """Return the audio `(S,)` of the request's `audio_span`, its rate in Hz, and its start time in seconds."""
        nothing = (None, None, 0.0)
        if self.stream is None:
            notes.append("no_audio: the file has no audio stream")
            return nothing
        if self.errors:
            notes.append(f"damaged: {self.errors} audio packets did not decode")
        if not self.chunks:
            notes.append("no_audio: the audio stream does not decode")
            return nothing
        rate = self.request.sampling_rate or self.rate
        first, last = aligned_span(self.request.audio_span, self.rate, rate)
        wave = self._assemble(first / self.rate, None if last is None else last - first)
        if not np.isfinite(wave).all():
            raise MediaError("undecodable", f"{self.request.name}: the audio has values that are not finite")
        begin = first * rate // self.rate
        wave, begin = cut_sound(resample(wave, self.rate, rate), begin, rate, self.request.audio_span)
        if len(wave) == 0:
            notes.append("too_short: the window has no audio")
            return nothing
        return wave, rate, begin / rate

    def _assemble(self, start: float, length: int | None) -> np.ndarray:
        """Return up to `length` samples from second `start` on, with silence where the timestamps have a gap."""
        parts: list[np.ndarray] = []
        begin = cursor = 0  # in samples from `start`; begin < 0: audio before `start`, which the last line cuts off
        for time, chunk in self.chunks:
            gap = 0 if time is None else round((time - start) * self.rate) - cursor
            if not parts and gap < 0:
                begin = cursor = gap
            elif gap > (SOUND_GAP * self.rate if parts else 0):
                self.request.limits.check_seconds(self.request.name, gap / self.rate)
                parts.append(np.zeros(gap, dtype=np.float32))
                cursor += gap
            parts.append(chunk)
            cursor += len(chunk)
        return np.concatenate(parts)[-begin : None if length is None else length - begin]


def aligned_span(span: tuple[float | None, float | None], rate: int, new_rate: int) -> tuple[int, int | None]:
    """Return the first and last sample to read so that resampling gives the same samples as for the complete clip.

    With g = gcd(rate, new_rate), every rate / g input samples yield exactly new_rate / g output samples. The first
    sample is a multiple of rate / g, so that the output samples fall on the same times as those of the complete clip.
    Both ends lie `SOUND_LEAD` outside the span, beyond the reach of the resampler's filter.
    """
    period = rate // gcd(rate, new_rate)
    lead = 0 if rate == new_rate else round(SOUND_LEAD * rate)
    start, end = span
    first = max(round(start * rate) - lead, 0) // period * period if start is not None else 0
    return first, None if end is None else round(end * rate) + lead


def cut_sound(
    wave: np.ndarray, begin: int, rate: int, span: tuple[float | None, float | None]
) -> tuple[np.ndarray, int]:
    """Cut a wave to a span in seconds; return it and the index in the clip of its first sample (before: `begin`)."""
    first = begin if span[0] is None else max(round(span[0] * rate), begin)
    last = begin + len(wave) if span[1] is None else max(round(span[1] * rate), first)
    return wave[first - begin : last - begin], first


def resample(wave: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resample a mono wave with FFmpeg's swresample.

    Args:
        wave (`np.ndarray` of shape `(S,)`): float32.
        rate, new_rate (`int`): rates before and after, in Hz.

    Returns:
        `np.ndarray` of shape `(ceil(S * new_rate / rate),)`: float32, aligned with the input.
    """
    if rate == new_rate or not len(wave):
        return wave
    if av is None:
        raise ImportError(f"resampling from {rate} to {new_rate} Hz needs PyAV: pip install av")
    length = -(-len(wave) * new_rate // rate)
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(wave, dtype=np.float32)[None], format="fltp", layout="mono"
    )
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=new_rate)
    parts = [part.to_ndarray()[0] for part in (*resampler.resample(frame), *resampler.resample(None))]
    out = np.concatenate([np.zeros(0, dtype=np.float32), *parts])[:length]  # a few samples can give no parts
    return np.pad(out, (0, length - len(out)))
