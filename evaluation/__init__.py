"""What measures and what shows: results, statistics, tables, plots, load tests, attacks, studies."""
