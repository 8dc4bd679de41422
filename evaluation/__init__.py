"""Measurement and presentation: results, statistics, tables, plots, load tests, attacks, studies."""
