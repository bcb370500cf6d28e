"""``cdm demo``: a tiny cascade trained from packaged images, the packaged cascade sampled, and a report."""
