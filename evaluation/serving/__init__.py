"""Load tests of the serving tier, in virtual time and live, and their reports."""
