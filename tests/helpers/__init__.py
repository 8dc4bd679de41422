"""Helpers shared by the tests of several rooms: real processes, fakes and made data."""
