"""A call over a poor link: the codec itself, since no filter sounds like it."""

from __future__ import annotations

from io import BytesIO

import av
import numpy as np

from fedstill.datasets.audiovisual.capture.signals import Waveform
from fedstill.datasets.decoding.decode import resample

BIT_RATE = 12_000.0  # per second at strength 1
LOWEST, HIGHEST = 4_000, 160_000  # what the encoder can still do for one channel
EFFORT = "5"  # of the encoder, from 0 to 10: a small device does not spend its battery on 10
RATES = (8_000, 12_000, 16_000, 24_000, 48_000)  # Hz that Opus knows
DECODED_RATE = 48_000


def low_rate_opus(waveform: Waveform, rate: int, strength: float, rng: np.random.Generator) -> Waveform:
    """Encoded by Opus at 12 kbit/s / strength, but at least 4 kbit/s, and decoded.

    The container says how many samples the encoder added in front; the decoder drops them, so time stays.
    """
    if not waveform.any():
        return waveform
    coded_rate = next((known for known in RATES if known >= rate), RATES[-1])
    heard = _decoded(_encoded(resample(waveform, rate, coded_rate), coded_rate, BIT_RATE / strength))
    back = resample(heard, DECODED_RATE, rate)[: len(waveform)]
    return np.pad(back, (0, len(waveform) - len(back)))


def _encoded(waveform: Waveform, rate: int, bit_rate: float) -> bytes:
    file = BytesIO()
    with av.open(file, "w", format="ogg") as container:
        stream = container.add_stream(
            "libopus", rate=rate, layout="mono", options={"compression_level": EFFORT}
        )
        stream.bit_rate = round(min(max(bit_rate, LOWEST), HIGHEST))
        sound = av.AudioFrame.from_ndarray(waveform[None], format="flt", layout="mono")
        sound.sample_rate = rate
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return file.getvalue()


def _decoded(file: bytes) -> Waveform:
    with av.open(BytesIO(file), "r") as container:
        pieces = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return np.concatenate(pieces).astype(np.float32, copy=False)
