"""The decoder of clip files: accepted input, limits, and reasons of refusals."""

from __future__ import annotations

import pickle
import subprocess
import sys

import av
import numpy as np
import pytest
import soundfile

from hf_mmbalance.model import media_frames_mmbalance
from hf_mmbalance.model.media_mmbalance import MEDIA_REASONS, Limits, MediaError, read_audio, read_media, resample
from tests.media_factory import grey_of, write_clip


def greys(frames: np.ndarray) -> np.ndarray:
    return frames.mean(axis=(1, 2, 3))


@pytest.mark.parametrize(
    ("suffix", "video", "audio"),
    [
        (".mp4", "mpeg4", "aac"),
        (".ts", "mpeg2video", "mp2"),
        (".mkv", "ffv1", "pcm_s16le"),
        (".mpg", "mpeg1video", "mp2"),
        (".flv", "flv", "aac"),
    ],
)
def test_frames_are_those_shown_at_the_centres_of_equal_parts(tmp_path, suffix, video, audio):
    clip = read_media(write_clip(tmp_path / f"a{suffix}", video=video, audio=audio, rate=44_100), num_frames=5)
    # 25 frames in 5 parts of 5: the centres are frames 2, 7, 12, 17, 22
    expected = [grey_of(n) for n in (2, 7, 12, 17, 22)]
    assert np.abs(greys(clip.frames) - expected).max() < 4
    np.testing.assert_allclose(np.diff(clip.frame_times), 0.2, atol=2e-3)
    assert clip.sampling_rate == 44_100
    assert abs(len(clip.audio) / 44_100 - 1.0) < 0.1
    assert clip.notes == ()


def test_window_crop_and_size(tmp_path):
    path = write_clip(tmp_path / "a.mp4", seconds=2.0)
    clip = read_media(path, num_frames=2, start=0.4, end=0.8, crop=(0.5, 0.0, 1.0, 0.5), size=(10, 12))
    # the window holds frames 10 to 19; the centres of its halves are at .5 and .7 s
    assert np.abs(greys(clip.frames) - [grey_of(12), grey_of(17)]).max() < 4
    assert clip.frames.shape == (2, 10, 12, 3)
    assert len(clip.audio) == round(0.4 * 16_000)
    assert read_media(path, num_frames=1, size=24).frames.shape == (1, 24, 32, 3)
    assert len(read_media(path, num_frames=None).frames) == 50
    shown = read_media(path, num_frames=None, start=0.41, end=0.49)  # frame 10 is on show from .40 to .44
    assert np.abs(greys(shown.frames) - [grey_of(n) for n in (10, 11, 12)]).max() < 4
    by_rate = read_media(path, fps=2.5)
    assert np.abs(greys(by_rate.frames) - [grey_of(n) for n in (5, 15, 25, 35, 45)]).max() < 4
    assert read_media(path, num_frames=1, crop=(0.5, 0.0, 1.0, 0.5)).frames.shape == (1, 24, 32, 3)


def test_crop_takes_the_named_part(tmp_path):
    path = tmp_path / "a.mkv"
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[20:, 30:] = 255
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=5)
        stream.height, stream.width, stream.pix_fmt = 40, 60, "yuv444p"
        for _ in range(5):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    assert read_media(path, num_frames=1, crop=(0.5, 0.5, 1.0, 1.0)).frames.min() > 250
    left = read_media(path, num_frames=1, crop=(0.0, 0.0, 0.5, 1.0), size=(8, 8)).frames
    assert left[:, :, :-1].max() < 5  # the outermost column blends with its neighbour, as any smoothing resize does


def test_skipping_between_key_frames_changes_nothing(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", seconds=4.0, gop=5)
    decoded = []
    whole = media_frames_mmbalance.FrameReader._decode_packet
    monkeypatch.setattr(
        media_frames_mmbalance.FrameReader,
        "_decode_packet",
        lambda self, codec, packet: decoded.append(packet) or whole(self, codec, packet),
    )
    clip = read_media(path, num_frames=3, want_audio=False)
    assert np.abs(greys(clip.frames) - [grey_of(n) for n in (16, 50, 83)]).max() < 4
    assert len(decoded) < 40  # of 100 packets
    monkeypatch.setattr(media_frames_mmbalance, "PACKET_STORE", 1000)  # too heavy to keep: read twice
    np.testing.assert_array_equal(read_media(path, num_frames=3, want_audio=False).frames, clip.frames)


def test_a_late_window_of_a_long_clip_is_reached_by_seeking(tmp_path):
    path = write_clip(tmp_path / "a.mp4", seconds=40.0, fps=5, rate=8000)
    late = read_media(path, num_frames=2, start=30.0, end=31.0)
    assert np.abs(greys(late.frames) - [grey_of(151), grey_of(153)]).max() < 4
    assert len(late.audio) == 8000
    assert np.abs(late.audio).max() > 0.2


def test_tags_that_are_not_utf8_are_no_reason_to_refuse(tmp_path):
    content = write_clip(tmp_path / "a.mp4").read_bytes()
    assert b"Lavf" in content  # the tag `encoder`
    assert len(read_media(content.replace(b"Lavf", b"\xff\xfe\xfd\xfc"), num_frames=2).frames) == 2


def test_bytes_and_path_agree_and_sound_is_right(tmp_path):
    path = write_clip(tmp_path / "a.mp4", tone=1000.0, rate=44_100, channels=2)
    clip = read_media(path, sampling_rate=16_000)
    same = read_media(path.read_bytes(), sampling_rate=16_000)
    np.testing.assert_array_equal(clip.audio, same.audio)
    np.testing.assert_array_equal(clip.frames, same.frames)
    assert clip.audio.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(clip.audio[2000:10_000]))
    assert np.argmax(spectrum) * 16_000 / 8000 == pytest.approx(1000, abs=4)
    assert np.abs(clip.audio[2000:10_000]).max() == pytest.approx(0.3, abs=0.02)  # the mean of the channels


def test_sound_and_frames_share_a_clock_where_the_container_starts_late(tmp_path):
    clip = read_media(write_clip(tmp_path / "a.mpg", video="mpeg1video", audio="mp2", rate=44_100), num_frames=5)
    assert 0 <= clip.frame_times[0] < 0.2
    assert clip.duration == pytest.approx(1.0, abs=0.1)


def test_missing_streams_give_none_and_a_note(tmp_path):
    silent = read_media(write_clip(tmp_path / "a.mp4", tone=None))
    assert silent.audio is None and silent.sampling_rate is None and silent.frames is not None
    assert silent.notes[0].startswith("no_audio")
    blind = read_media(write_clip(tmp_path / "a.m4a", video=None))
    assert blind.frames is None and blind.frame_times is None and blind.audio is not None
    assert blind.notes[0].startswith("no_video")


def test_frames_are_repeated_if_the_clip_has_fewer(tmp_path):
    clip = read_media(write_clip(tmp_path / "a.mp4", seconds=0.12, tone=None), num_frames=8)
    assert len(clip.frames) == 8
    assert len(np.unique(clip.frame_times)) == 3


def reason(*args, **options) -> str:
    with pytest.raises(MediaError) as caught:
        read_media(*args, **options)
    assert caught.value.reason in MEDIA_REASONS
    return caught.value.reason


def test_every_refusal_has_its_reason(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    (tmp_path / "pointer.mp4").write_bytes(pointer)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "page.mp4").write_bytes(b"<html>not found</html>" * 20)
    clip = write_clip(tmp_path / "a.mp4", seconds=2.0)
    assert reason(tmp_path / "gone.mp4") == "missing"
    assert reason(tmp_path) == "unreadable"
    assert reason(tmp_path / "empty.mp4") == "empty"
    assert reason(pointer) == "lfs_pointer"
    assert reason(tmp_path / "pointer.mp4") == "lfs_pointer"
    assert reason(tmp_path / "page.mp4") == "undecodable"
    assert reason(write_clip(tmp_path / "b.mp4", tone=None), want_frames=False) == "no_audio"
    assert reason(write_clip(tmp_path / "b.m4a", video=None), want_audio=False) == "no_video"
    assert reason(clip, start=5.0, end=6.0) == "too_short"
    assert reason(clip, limits=Limits(max_seconds=1.0)) == "too_long"
    assert reason(clip, limits=Limits(max_pixels=100)) == "too_large"
    assert reason(clip, limits=Limits(max_bytes=10_000)) == "too_large"
    assert read_media(clip, limits=Limits(max_seconds=1.0), start=0.5, end=1.0).duration == pytest.approx(0.5)


def test_a_disguised_playlist_opens_no_other_file(tmp_path):
    secret = write_clip(tmp_path / "secret.ts", video="mpeg2video", audio="mp2", rate=44_100)
    fake = tmp_path / "clip.mp4"
    fake.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")
    assert reason(fake) == "undecodable"
    fake.write_text(f"ffconcat version 1.0\nfile {secret.name}\n")
    assert reason(fake) == "undecodable"


def test_damage_in_the_middle_is_noted(tmp_path):
    path = write_clip(tmp_path / "a.mp4", video="libx264", seconds=2.0, gop=10)
    content = bytearray(path.read_bytes())
    media = content.index(b"mdat")
    content[media + 3000 : media + 6000] = bytes(3000)
    clip = read_media(bytes(content))
    assert len(clip.frames) == 8
    assert any(note.startswith("damaged") for note in clip.notes)


def test_errors_can_be_pickled():
    error = pickle.loads(pickle.dumps(MediaError("too_long", "a.mp4: 3 s")))
    assert (error.reason, str(error)) == ("too_long", "a.mp4: 3 s")


@pytest.mark.parametrize(
    "options",
    [
        {"num_frames": 0},
        {"fps": 0.0},
        {"sampling_rate": 0},
        {"start": 2.0, "end": 1.0},
        {"crop": (0.5, 0, 0.5, 1)},
        {"size": (0, 5)},
        {"want_audio": False, "want_frames": False},
    ],
)
def test_invalid_arguments_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match="must|both|is"):
        read_media(tmp_path / "a.mp4", **options)


@pytest.mark.parametrize("new_rate", [8000, 16_000, 48_000])
def test_resample_keeps_time_and_level(new_rate):
    time = np.arange(22_050) / 22_050
    wave = np.sin(2 * np.pi * 300 * time).astype(np.float32)
    out = resample(wave, 22_050, new_rate)
    expected = np.sin(2 * np.pi * 300 * np.arange(new_rate) / new_rate)
    assert len(out) == new_rate
    np.testing.assert_allclose(out[200:-200], expected[200:-200], atol=5e-3)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_read_audio(tmp_path, suffix):
    time = np.arange(16_000) / 16_000
    wave = np.stack([0.5 * np.sin(2 * np.pi * 500 * time), np.zeros(16_000)], axis=1).astype(np.float32)
    soundfile.write(tmp_path / f"a{suffix}", wave, 16_000)
    out, rate = read_audio(tmp_path / f"a{suffix}")
    assert rate == 16_000
    assert np.abs(out[4000:12_000]).max() == pytest.approx(0.25, abs=0.03)
    half, rate = read_audio((tmp_path / f"a{suffix}").read_bytes(), sampling_rate=8000, start=0.25, end=0.75)
    assert rate == 8000 and len(half) == 4000
    with pytest.raises(MediaError, match="max_seconds"):
        read_audio(tmp_path / f"a{suffix}", limits=Limits(max_seconds=0.5))


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [
        *(("wav", subtype) for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW")),
        *(("flac", "PCM_24"), ("aiff", "PCM_16"), ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")),
    ],
)
def test_a_sound_file_gives_the_same_samples_as_a_column_and_as_a_clip(tmp_path, suffix, subtype):
    path = tmp_path / f"a.{suffix}"
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.uniform(-0.5, 0.5, (8000, 2)).astype(np.float32), 16_000, subtype=subtype)
    np.testing.assert_array_equal(read_audio(path)[0], read_media(path, want_frames=False).audio)


def test_read_audio_of_a_video_and_of_values_that_are_not_finite(tmp_path):
    wave, rate = read_audio(write_clip(tmp_path / "a.mp4"))
    assert rate == 16_000 and abs(len(wave) - 16_000) < 1500
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, np.float32), 8000, subtype="FLOAT")
    with pytest.raises(MediaError, match="finite"):
        read_audio(tmp_path / "nan.wav")


def test_importing_it_imports_neither_torch_nor_transformers():
    code = "import sys, hf_mmbalance.model.media_mmbalance; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


# What the shared edge cases must give: sound samples at 16 kHz (None: no sound), frame height and width, notes.
EDGE_CASES = {
    "corrupt_after_28_frames.mp4": (None, (720, 1280), ("no_audio", "damaged")),
    "failing_audio.mp4": (179_740, (360, 640), ()),
    "h264_opus.mkv": (165_884, (240, 426), ()),
    "h265_10bit.mp4": (None, (200, 200), ("no_audio",)),
    "mpeg4_mp3.avi": (104_908, (240, 320), ()),
    "no_audio_stream.mp4": (None, (256, 340), ("no_audio",)),
    "rotated_90.mov": (None, (568, 320), ("no_audio",)),
    "six_channel_aac.mp4": (84_992, (720, 1280), ()),
    "two_video_two_audio_subtitles.mp4": (208_896, (270, 480), ()),
    "vp9_opus_no_duration.webm": (78_000, (720, 1280), ()),
    "youtube_aac.mp4": (290_529, (240, 320), ()),
}


@pytest.mark.parametrize("name", sorted(EDGE_CASES))
def test_edge_cases(real_data, name):
    samples, shape, codes = EDGE_CASES[name]
    clip = read_media(real_data / "media_edge_cases" / name, num_frames=4, sampling_rate=16_000)
    assert clip.frames.shape == (4, *shape, 3)
    assert np.isfinite(clip.frame_times).all() and (np.diff(clip.frame_times) >= 0).all()
    assert greys(clip.frames).min() > 0
    if samples is None:
        assert clip.audio is None
    else:
        assert abs(len(clip.audio) - samples) <= 160
        assert np.abs(clip.audio).max() > 0.01 or name == "vp9_opus_no_duration.webm"  # that one is silent
    assert tuple(note.split(":")[0] for note in clip.notes) == codes


def test_every_edge_case_is_listed(real_data):
    assert {path.name for path in (real_data / "media_edge_cases").iterdir()} == set(EDGE_CASES)


def test_rotation_is_applied_clockwise(real_data):
    path = real_data / "media_edge_cases" / "rotated_90.mov"
    with av.open(str(path)) as container:
        stored = list(container.decode(video=0))[1].to_ndarray(format="rgb24")  # the middle one of three
    np.testing.assert_array_equal(read_media(path, num_frames=1).frames[0], np.rot90(stored, -1))


def test_official_crema_d_files(real_data):
    """FLV without a frame count or seeking; the MP3 of another clip by the sound reader."""
    path = real_data / "crema_d" / "VideoFlash" / "1001_DFA_ANG_XX.flv"
    with av.open(str(path)) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    clip = read_media(path, num_frames=4, sampling_rate=16_000)
    picks = [int((k + 0.5) * len(every) / 4) for k in range(4)]
    for frame, place in zip(clip.frames, picks, strict=True):
        assert min(np.abs(frame - every[p].astype(int)).mean() for p in (place - 1, place, place + 1)) < 0.5
    assert clip.duration == pytest.approx(2.26, abs=0.05)
    wave, rate = read_audio(real_data / "crema_d" / "AudioMP3" / "1002_DFA_ANG_XX.mp3")
    assert rate == 44_100 and len(wave) / rate == pytest.approx(2.6, abs=0.05)


def test_grid_clip_window(real_data):
    path = real_data / "grid_s1" / "s1" / "bbaf2n.mp4"
    clip = read_media(path, num_frames=5, start=1.64, end=1.89, crop=(0.32, 0.69, 0.75, 0.96), size=(32, 48))
    assert clip.frames.shape == (5, 32, 48, 3)
    np.testing.assert_allclose(clip.frame_times, [1.64, 1.68, 1.76, 1.8, 1.84], atol=0.041)
    assert len(clip.audio) == 4000
