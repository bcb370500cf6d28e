"""The diffusion process: schedules, noising and its inverse, losses, grids and samplers."""
