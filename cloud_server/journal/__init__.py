"""What the cloud must not lose: the journal of a run, its event log, and what an operator reads in them."""
