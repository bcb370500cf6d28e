"""A page in the browser: choose settings, watch a cascade sample, compare, enlarge, download."""
