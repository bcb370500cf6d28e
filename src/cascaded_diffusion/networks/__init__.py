"""Networks: one configurable U-Net, its parts, and what it costs."""
