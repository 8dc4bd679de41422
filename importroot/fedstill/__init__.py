"""Personal audio-visual models for edge devices by selective feature distillation."""
