"""What the documentation site generates from the code: pages of reference, and the shell blocks that tests run."""
