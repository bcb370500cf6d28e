"""Stages, chains of them, and sampling from both."""
