"""A request of large images holds up no small one."""

from __future__ import annotations

import threading
from io import BytesIO

import pytest
import torch
from PIL import Image

from fedstill.cloud_server.serving.engine.predictions import ImageError
from fedstill.cloud_server.serving.server.image_workers import LARGE_PIXELS, ImageWorkers
from fedstill.cloud_server.serving.server.request_images import EncodedImage, ImageForm, encoded
from fedstill.models.vit.preprocess_settings import PLAIN

FORM = ImageForm(32, PLAIN)


def png(width: int, height: int) -> bytes:
    content = BytesIO()
    Image.new("L", (width, height), 77).save(content, "PNG")
    return content.getvalue()


def test_small_images_do_not_wait_for_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    go, plain = threading.Event(), EncodedImage.__call__

    def slow(image: EncodedImage) -> torch.Tensor:
        if image.pixels > LARGE_PIXELS:
            assert go.wait(30)
        return plain(image)

    monkeypatch.setattr(EncodedImage, "__call__", slow)
    with ImageWorkers() as workers:
        large = [workers.submit(encoded(png(2048, 1025), FORM)) for _ in range(4)]
        small = [workers.submit(encoded(png(64, 48), FORM)) for _ in range(4)]
        assert all(one.result(30).shape == (3, 32, 32) for one in small)
        assert not any(one.done() for one in large)
        go.set()
        assert all(one.result(30).shape == (3, 32, 32) for one in large)


def test_what_cannot_be_decoded_is_refused_at_once() -> None:
    with pytest.raises(ImageError, match="neither JPEG nor PNG"):
        encoded(b"GIF89a", FORM)
    assert encoded(png(64, 48), FORM).pixels == 64 * 48
