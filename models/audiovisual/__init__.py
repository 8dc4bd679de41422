"""The audio-visual student and teacher: encoders, fusion, feature compression, ONNX graphs."""
