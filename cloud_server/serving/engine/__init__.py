"""One forward of the elastic ViT for a batch of several tasks."""
