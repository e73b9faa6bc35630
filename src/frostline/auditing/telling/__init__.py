"""Findings and rules in words: for a terminal, for GitHub, as pages."""
