"""Packaged recipes and the class that reads them."""
