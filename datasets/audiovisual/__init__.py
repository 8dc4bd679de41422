"""From audio-visual files to tensors: readers, spectrograms, stores, partitions."""
