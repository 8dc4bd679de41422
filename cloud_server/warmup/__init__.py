"""Token-reduction warm-up of a Vision Transformer before it serves (thesis chapter 4, "Prodigy")."""
