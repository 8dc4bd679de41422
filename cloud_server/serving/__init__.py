"""The elastic ViT serving tier."""
