"""The launcher, experiments and engines: the only room that imports both edge and cloud."""
