"""Training one stage: its run folder, its loop, its checkpoints."""
