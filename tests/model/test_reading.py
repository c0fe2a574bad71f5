"""The reader: spans, parts passed with a video, orientation, and files that could crash or block a reader."""

from __future__ import annotations

import gzip
import http.server
import os
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from hf_mmbalance.model import inputs_mmbalance, media_mmbalance, windows_mmbalance
from hf_mmbalance.model.inputs_mmbalance import source_of
from hf_mmbalance.model.media_frames_mmbalance import rotate_upright
from hf_mmbalance.model.media_mmbalance import MediaError, read_media
from hf_mmbalance.model.media_request_mmbalance import Limits
from hf_mmbalance.model.reading_mmbalance import ReadingSpec, cut, decode, read
from hf_mmbalance.model.windows_mmbalance import windows
from tests.media_factory import write_clip


SPEC = ReadingSpec(
    sampling_rate=16_000, frames=4, frame_size=(12, 16), crop=(0.1, 0.2, 0.8, 0.9), unit="span", margin=0.1
)

ALL = ReadingSpec(fps=25.0)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(
        tmp_path_factory.mktemp("film") / "film.mkv", seconds=2.0, rate=44_100, audio="pcm_s16le", texture=1
    )


def test_a_span_equals_that_part_of_the_whole_clip(film):
    whole = read(film, ReadingSpec(frames=4))
    part = read(film, SPEC, (0.5, 1.1))
    first, last = round(0.4 * 16_000), round(1.2 * 16_000)  # with the margin
    np.testing.assert_array_equal(part.parts["audio"], whole.parts["audio"][first:last])
    assert part.parts["vision"].shape == (4, 12, 16, 3) and part.seconds == pytest.approx(0.8)
    # Centres of four parts of 0.4 to 1.2 s at 25 frames per second: frames 12, 17, 22 and 27.
    np.testing.assert_allclose(part.frame_times + 0.4, [0.48, 0.68, 0.88, 1.08], atol=1e-6)


def test_a_span_moves_without_decoding_again_and_comes_back_to_the_same(film):
    kept = decode(film, SPEC, (0.5, 1.1), around=0.2)
    exact = read(film, SPEC, (0.5, 1.1))
    for key in ("audio", "vision"):
        np.testing.assert_array_equal(cut(kept, SPEC).parts[key], exact.parts[key])
    moved = cut(kept, SPEC, (0.52, 1.32)).parts
    np.testing.assert_array_equal(moved["audio"], read(film, SPEC, (0.62, 1.22)).parts["audio"])
    np.testing.assert_array_equal(moved["vision"], read(film, SPEC, (0.62, 1.22)).parts["vision"])


def test_parts_passed_with_a_video_are_cut_to_the_span(film, tmp_path):
    sound = read_media(film, want_frames=False)
    soundfile.write(tmp_path / "sound.wav", sound.audio, sound.sampling_rate, subtype="FLOAT")
    expected = read(film, SPEC, (0.5, 1.1)).parts
    span = {"start": 0.5, "end": 1.1}
    for source in (
        {"video": film, **span},
        {"video": film, "audio": tmp_path / "sound.wav", **span},
        {"video": film, "audio": sound.audio, "sampling_rate": sound.sampling_rate, **span},
    ):
        found = read(source, SPEC).parts
        np.testing.assert_allclose(found["audio"], expected["audio"], atol=1e-4)
        np.testing.assert_array_equal(found["vision"], expected["vision"])


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ((1.0, 1.0), "start < end"),
        ((float("nan"), 1.0), "start < end"),
        ((1.2, 0.4), "start < end"),
        ((-2.0, -1.0), "end > 0"),
    ],
)
def test_invalid_spans_are_refused(film, span, message):
    with pytest.raises(ValueError, match=message):
        read(film, SPEC, span)
    with pytest.raises(ValueError, match="both start and end"):
        read({"video": film, "start": 1.0}, SPEC)
    with pytest.raises(MediaError) as error:
        read(film, SPEC, (7.0, 8.0))
    assert error.value.reason == "too_short"


def test_a_spec_survives_json_and_refuses_unknown_fields():
    spec = ReadingSpec(crop=(0.0, 0.1, 1.0, 0.9), frame_size=(8, 9), stored=ReadingSpec(fps=25.0, image_format="jpeg"))
    assert ReadingSpec.from_dict(spec.to_dict()) == spec
    for values, message in (
        ({"rate": 3}, "unknown field 'rate'"),
        ({"unit": "word"}, "unit='word' is unknown"),
        ({"resampler": "soxr"}, "resampler='soxr' is unknown"),
        ({"crop": (0.5, 0.0, 0.2, 1.0)}, "crop must be"),
        ({"crop": (0.0, 0.0, 1.0)}, "crop must be"),
        ({"margin": -1}, "margin=-1 must be seconds"),
        ({"margin": float("nan")}, "margin=nan must be seconds"),
        ({"sampling_rate": "16000"}, "sampling_rate='16000' must be a whole number"),
        ({"frames": 0}, "frames=0 must be a whole number above 0"),
        ({"frames": 2.5}, "frames=2.5 must be a whole number"),
        ({"fps": 0}, "fps=0 must be a number above 0"),
        ({"frame_size": (0, 8)}, r"frame_size=\(0, 8\) must be \(height, width\)"),
        ({"frame_size": [8]}, r"frame_size=\(8,\) must be"),
        ({"image_format": "gif"}, "image_format='gif' is unknown"),
        ({"longest_seconds": -1.0}, "longest_seconds=-1.0 must be seconds"),
        ({"stored": 3}, "stored=3 must be a ReadingSpec"),
    ):
        with pytest.raises(ValueError, match=message):
            ReadingSpec.from_dict(values)


# -- frames in arrays -------------------------------------------------------------------------------------------


def test_all_frames_of_a_file_are_read_as_the_file_is(film):
    """Frames without times are spread over the sound: the same ones are taken from them as from the file."""
    sound = read_media(film, want_frames=False)
    every = {"audio": sound.audio, "sampling_rate": sound.sampling_rate, "frames": read(film, ALL).parts["vision"]}
    assert len(every["frames"]) == 50
    for count in (3, 5, 8):
        spec = ReadingSpec(frames=count)
        np.testing.assert_array_equal(read(every, spec).parts["vision"], read(film, spec).parts["vision"])
    span = {"start": 0.5, "end": 1.1}
    np.testing.assert_array_equal(
        read({**every, **span}, SPEC).parts["vision"], read({"video": film, **span}, SPEC).parts["vision"]
    )


def test_fewer_frames_than_taken_are_repeated_equally_often():
    frames = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (10, 20)])
    found = read({"frames": frames}, ReadingSpec(frames=8)).parts["vision"]
    assert found[:, 0, 0, 0].tolist() == [10] * 4 + [20] * 4


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.6, 0.3, 0.0], "in ascending order"),
        ([0.0, float("nan"), 0.3], "must be finite"),
        ([0.0, 0.3], r"3 frames but frame_times of shape \(2,\): give one time per frame"),
        (0.3, r"frame_times of shape \(\)"),
    ],
)
def test_wrong_times_of_frames_are_refused(times, message):
    with pytest.raises(MediaError, match=message):
        read({"frames": np.zeros((3, 4, 4, 3), np.uint8), "frame_times": times}, ReadingSpec(frames=2))


def test_a_span_of_frames_without_times_or_sound_is_refused():
    clip = {"frames": np.zeros((3, 4, 4, 3), np.uint8), "start": 0.1, "end": 0.3}
    with pytest.raises(ValueError, match="have no times to cut a span from: give frame_times"):
        read(clip, ReadingSpec(frames=2))
    assert len(read({**clip, "frame_times": [0.0, 0.1, 0.2]}, ReadingSpec(frames=2)).parts["vision"]) == 2


def test_frames_do_not_depend_on_whether_the_sound_is_asked_for(film):
    """Sound says how long the clip is, and so which frames are taken."""
    sound = read_media(film, want_frames=False)
    every = {"audio": sound.audio, "sampling_rate": sound.sampling_rate, "frames": read(film, ALL).parts["vision"]}
    stored = ReadingSpec(frames=7, frame_size=(12, 16), image_format="png")
    for source, spec in (
        ({**every, "start": 0.5, "end": 1.1}, SPEC),
        ({**every, "frame_times": np.arange(50) * 0.03}, ReadingSpec(frames=4)),
        (film, ReadingSpec(frames=2, stored=stored)),
    ):
        both, vision = read(source, spec).parts, read(source, spec, modalities=("vision",)).parts
        np.testing.assert_array_equal(vision["vision"], both["vision"])
        assert vision["audio"] is None and both["audio"] is not None
    parts = windows(every, ReadingSpec(frames=2), window_seconds=0.5, modalities=("vision",))
    for part, whole in zip(parts, windows(every, ReadingSpec(frames=2), window_seconds=0.5), strict=True):
        np.testing.assert_array_equal(part.parts["vision"], whole.parts["vision"])


def test_frames_in_place_of_those_of_a_video_without_sound(tmp_path):
    silent = write_clip(tmp_path / "silent.mp4", seconds=0.4, tone=None)
    clip = read({"video": silent, "frames": np.zeros((2, 4, 4, 3), np.uint8)}, ReadingSpec(frames=2))
    assert clip.parts["audio"] is None and clip.parts["vision"].shape == (2, 4, 4, 3)


def test_frames_without_times_or_sound_have_no_length():
    frames = np.zeros((30, 4, 4, 3), np.uint8)
    for times, timed, count in ((None, False, 1), (np.arange(30.0), True, 3)):
        source = {"frames": frames, "frame_times": times}
        assert decode(source, ReadingSpec(frames=2)).timed == timed
        assert len(list(windows(source, ReadingSpec(frames=2), window_seconds=10.0))) == count


# -- orientation ------------------------------------------------------------------------------------------------

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[1, 0], [0, 1]], PIXELS),
        ([[-1, 0], [0, -1]], PIXELS[::-1, ::-1]),  # half a turn
        ([[-1, 0], [0, 1]], PIXELS[:, ::-1]),  # mirrored left to right
        ([[1, 0], [0, -1]], PIXELS[::-1]),  # mirrored top to bottom
        ([[0, 1], [-1, 0]], np.rot90(PIXELS, -1)),  # a quarter turn clockwise
        ([[0, -1], [1, 0]], np.rot90(PIXELS, 1)),  # and the other way
        ([[0, 1], [1, 0]], PIXELS.transpose(1, 0, 2)),
        ([[0, 0], [0, 0]], PIXELS),  # says nothing
    ],
)
def test_frames_are_shown_as_their_matrix_says(matrix, expected):
    np.testing.assert_array_equal(rotate_upright(PIXELS, 65536.0 * np.array(matrix)), expected)


def test_a_video_rotated_by_90_degrees(real_data):
    """A phone video: the angle that PyAV reads agrees."""
    path = real_data / "media_edge_cases" / "rotated_90.mov"
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        expected = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
    assert expected.shape[0] != frame.height
    np.testing.assert_array_equal(read_media(path, num_frames=None).frames[0], expected)


# -- what would kill or hang ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "suffix"), [("wavpack", "wv"), ("pcm_s16le", "mka")])  # planar, and packed
def test_more_than_eight_channels(tmp_path, codec, suffix):
    path, layout = tmp_path / f"many.{suffix}", "hexadecagonal"
    wave = (0.25 * np.sin(np.arange(8000) / 10)).astype(np.float32)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=8000, layout=layout)
        count = stream.layout.nb_channels
        frame = av.AudioFrame.from_ndarray(np.repeat(wave, count)[None], format="flt", layout=layout)
        frame.sample_rate = 8000
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=8000)
        for part in resampler.resample(frame):
            part.pts = None
            for packet in stream.encode(part):
                out.mux(packet)
        out.mux(stream.encode())
    clip = read_media(path, want_frames=False)
    assert count == 16
    np.testing.assert_allclose(clip.audio, wave[: len(clip.audio)], atol=0.01)


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "clip.mp4")
    with pytest.raises(MediaError, match="not a regular file") as error:
        read_media(tmp_path / "clip.mp4")
    assert error.value.reason == "unreadable"


@pytest.mark.parametrize(
    ("raised", "reason"),
    [(IndexError("x"), "undecodable"), (TypeError("x"), "undecodable"), (MemoryError(), "too_large")],
)
def test_any_decoder_error_is_reported_as_an_error_of_the_file(film, monkeypatch, raised, reason):
    def fail(*args):
        raise raised

    monkeypatch.setattr(media_mmbalance, "_demux", fail)
    with pytest.raises(MediaError, match="film.mkv") as error:
        read_media(film)
    assert error.value.reason == reason


def test_a_long_file_is_decoded_once_for_all_its_windows(film, monkeypatch):
    calls = []
    monkeypatch.setattr(
        windows_mmbalance, "read_media", lambda *args, **kwargs: calls.append(1) or read_media(*args, **kwargs)
    )
    spec = ReadingSpec(frames=2, frame_size=(8, 8))
    found = list(windows(film, spec, window_seconds=0.2))
    assert len(found) == 10 and len(calls) == 2  # the first window gives the size of a frame
    for number, clip in enumerate(found):
        expected = read(film, spec, (0.2 * number, 0.2 * number + 0.2))
        np.testing.assert_array_equal(clip.parts["audio"], expected.parts["audio"])
        np.testing.assert_array_equal(clip.parts["vision"], expected.parts["vision"])


def test_windows_and_spans_of_a_raw_file_are_converted_as_clips_of_the_built_data_set(film, monkeypatch):
    stored = ReadingSpec(frames=4, frame_size=(12, 16), image_format="png")
    spec = ReadingSpec(frames=2, frame_size=(12, 16), stored=stored)
    for number, clip in enumerate(windows(film, spec, window_seconds=0.5)):
        span = (0.5 * number, 0.5 * number + 0.5)
        four = read(film, stored, span)
        np.testing.assert_array_equal(clip.parts["audio"], four.parts["audio"])
        np.testing.assert_array_equal(clip.parts["vision"], four.parts["vision"][[0, 2]])
    assert number == 3
    part = read(film, spec, (0.3, 0.8))
    np.testing.assert_array_equal(part.parts["vision"], read(film, stored, (0.3, 0.8)).parts["vision"][[0, 2]])
    assert part.seconds == pytest.approx(0.5)
    warnings: list[str] = []
    monkeypatch.setattr(windows_mmbalance, "declared_duration", lambda source: 60.0)
    monkeypatch.setattr(windows_mmbalance.logger, "warning", warnings.append)
    assert len(list(windows(film, spec, window_seconds=1.0))) == 2
    assert warnings == [f"{film} ends before 2 s, but its declared duration is 60 s"]


def test_every_window_of_sound_and_video_in_two_files_has_its_own_frames(film, tmp_path):
    sound = read_media(film, want_frames=False)
    soundfile.write(tmp_path / "sound.wav", sound.audio, sound.sampling_rate, subtype="FLOAT")
    source, spec = {"video": film, "audio": tmp_path / "sound.wav"}, ReadingSpec(frames=2)
    both = list(windows(source, spec, window_seconds=0.5))
    for one, two in zip(windows(film, spec, window_seconds=0.5), both, strict=True):
        np.testing.assert_array_equal(one.parts["vision"], two.parts["vision"])
        np.testing.assert_array_equal(one.parts["audio"], two.parts["audio"])


def test_windows_that_cannot_be_are_refused(film):
    with pytest.raises(ValueError, match="stride_seconds is the step between windows: give window_seconds"):
        next(windows(film, SPEC, stride_seconds=0.2))


@pytest.fixture
def server(tmp_path):
    """Serves /zip as a compressed bomb and /local as a redirect to itself."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/zip":
                body = gzip.compress(b"\0" * (64 << 20))
                self.send_response(200)
                self.send_header("Content-Encoding", "gzip")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            else:
                self.send_response(302)
                self.send_header("Location", "/zip" if self.path == "/local" else "file:///etc/passwd")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, *args):
            """Silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_downloads_are_bounded_by_their_decompressed_size(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for path in ("/zip", "/local"):
        with pytest.raises(MediaError, match="compressed"):
            source_of(server + path, Limits(max_bytes=1 << 20))
    with pytest.raises(MediaError, match="not http"):
        source_of(server + "/file")
    # As if the first address were a public one.
    monkeypatch.setattr(inputs_mmbalance, "_is_local", lambda address: address.endswith("/zip"))
    with pytest.raises(MediaError, match="redirects to a local address"):
        source_of(server + "/local")
