"""Reading what others wrote: sizes, names and shapes are checked before memory is taken, and nothing is executed."""
