"""The part of a clip that matters: the face in its pictures, the speech in its sound. Arrays in, arrays out."""
