"""A task of one's own images on the serving tier: add it, serve it, ask it from Python, stop."""

from __future__ import annotations

import argparse
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import fedstill

FEDSTILL = [sys.executable, "-P", "-m", "fedstill"]
START_SECONDS = 300.0
KINDS = {"sea": (40, 90, 180), "sand": (210, 180, 120)}


def picture(kind: str, random: np.random.Generator) -> bytes:
    """A noisy PNG in one colour."""
    values = np.array(KINDS[kind]) + random.normal(0, 40, (64, 64, 3))
    file = io.BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def draw_images(folder: Path) -> None:
    """train/KIND/NUMBER.png and test/KIND/NUMBER.png."""
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for kind in KINDS:
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (folder / split / kind / f"{number}.png").write_bytes(picture(kind, random))


def random_weights(path: Path) -> None:
    """timm's own tiny Vision Transformer for tests; the file's name says which architecture it is."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), path)


def started(server: subprocess.Popen[bytes], said: Path) -> int:
    """The port, once everything is measured and warm."""
    end = time.monotonic() + START_SECONDS
    while not said.exists() or not json.loads(said.read_text())["ready"]:
        if server.poll() is not None or time.monotonic() > end:
            sys.exit("the server did not start")
        time.sleep(0.1)
    return int(json.loads(said.read_text())["port"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for images, registry and log")
    parser.add_argument("--weights", type=Path, help="timm ViT weights, safetensors (default: random ones)")
    arguments = parser.parse_args()
    out, weights = arguments.out.resolve(), arguments.weights
    draw_images(out / "images")
    if weights is None:
        weights = out / "test_vit.safetensors"
        random_weights(weights)

    common = ["--weights", str(weights)]
    registry, images = out / "tasks", out / "images"
    add = ["tasks", "add", "beach", "--images", str(images), "--registry", str(registry), *common]
    subprocess.run([*FEDSTILL, *add], check=True)

    serve = ["serve", "--state", str(registry), "--insecure", "--listen", "127.0.0.1:0", "--lame-duck", "0",
             *common, "--images", f"beach={images}", "--schedules", "0,-4,-8", "--batches", "1,4"]  # fmt: skip
    with (out / "serve.log").open("wb") as log:
        server = subprocess.Popen([*FEDSTILL, *serve], stdout=log, stderr=log)
    try:
        port = started(server, registry / "serve" / "server.json")
        random = np.random.default_rng(1)
        with fedstill.ServingClient(fedstill.ServingAddress(f"127.0.0.1:{port}")) as client:
            for kind, latency_ms in (("sea", 5000), ("sand", 5000), ("sea", 200)):
                answer = client.make_query("beach", picture(kind, random), latency_ms=latency_ms)
                print(
                    f"{kind}: {answer.label}, schedule {answer.schedule}, "
                    f"{answer.waiting_ms + answer.inference_ms:.1f} of {latency_ms} ms"
                )
    except fedstill.ServingError as error:
        sys.exit(f"refused ({error.code.name}): {error}")
    finally:
        server.send_signal(signal.SIGTERM)
        print(f"the server ended with {server.wait(60)}")


if __name__ == "__main__":
    main()
