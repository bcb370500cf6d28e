"""Fuzzing: every reader of outside data against files that were mutated or made up."""
