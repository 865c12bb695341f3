"""Tests, and the laboratory they run in."""
