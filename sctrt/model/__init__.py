"""The vector-quantised autoencoder in PyTorch, the import of published checkpoints, and the export to a bundle."""
