"""One self-contained page about runs, cascades, searches and scores."""
