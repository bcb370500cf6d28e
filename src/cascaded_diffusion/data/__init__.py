"""Images: where they come from, how they are prepared, and how prepared data are read."""
