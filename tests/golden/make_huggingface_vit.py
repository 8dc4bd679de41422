"""Writes tests/data/huggingface_vit: tiny models as Hugging Face's transformers saves them, and what they answer.

transformers is no dependency of fedstill, so this runs in an environment of its own, and its result is kept:

    python -m venv /tmp/hf && /tmp/hf/bin/pip install torch torchvision pillow 'transformers==5.24.0'
    /tmp/hf/bin/python tests/golden/make_huggingface_vit.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

PLACE = Path(__file__).parents[1] / "data" / "huggingface_vit"
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
}
LABELS = {0: "tabby, tabby cat", 1: "crane", 2: "crane"}  # ImageNet has cranes twice, too
MODELS = {
    "vit": (ViTConfig, ViTForImageClassification, {"problem_type": "multi_label_classification"}),
    "vit_other": (ViTConfig, ViTForImageClassification, {"qkv_bias": False, "hidden_act": "gelu_new"}),
    "deit": (DeiTConfig, DeiTForImageClassification, {}),
}
PROCESSORS = {
    "vit": ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4, 0.5, 0.6]),
    "vit_other": ViTImageProcessor(size={"height": 32, "width": 32}),
    "deit": DeiTImageProcessor(
        size={"height": 36, "width": 36}, crop_size={"height": 32, "width": 32}, image_std=[0.2, 0.3, 0.4]
    ),
}


def main() -> None:
    torch.manual_seed(0)
    picture = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8)  # smooth once it is enlarged
    picture = torch.from_numpy(_enlarged(picture.numpy()))
    for name, (config, kind, options) in MODELS.items():
        model = kind(config(**SIZES, id2label=LABELS, label2id={"crane": 1}, **options)).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # every part must matter
                parameter.copy_(
                    torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1)
                    + (parameter if parameter.ndim == 1 else 0)
                )
            values = torch.randn(3, 3, 32, 32)
            prepared = PROCESSORS[name](Image.fromarray(picture.numpy()), return_tensors="pt").pixel_values
            folder = PLACE / name
            model.save_pretrained(folder)
            PROCESSORS[name].save_pretrained(folder)
            answers = {
                "pixel_values": values,
                "logits": model(values).logits,
                "features": model.base_model(values).last_hidden_state[:, 0],
                "picture": picture,
                "prepared": prepared[0],
                "picture_logits": model(prepared).logits[0],
            }
            save_file(
                {key: value.contiguous() for key, value in answers.items()}, folder / "answers.safetensors"
            )


def _enlarged(small):  # type: ignore[no-untyped-def]
    import numpy as np

    return np.array(Image.fromarray(small).resize((48, 40), Image.Resampling.BICUBIC))


if __name__ == "__main__":
    main()
