"""The launcher, experiments, statistics, reports and plots: the only room that sees edge and cloud."""
