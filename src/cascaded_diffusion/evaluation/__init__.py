"""What turns images into scores."""
