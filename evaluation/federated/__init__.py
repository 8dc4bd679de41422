"""Reports, plots and tables of personalisation runs."""
