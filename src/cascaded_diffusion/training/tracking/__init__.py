"""Showing a run in TensorBoard, Weights & Biases or trackio, beside ``metrics.jsonl``."""
