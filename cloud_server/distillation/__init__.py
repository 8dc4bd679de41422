"""The method: Algorithm 7, the arms, selection, teacher and public bank."""
