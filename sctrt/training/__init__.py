"""Training of the autoencoder from PET slices to CT slices (needs torch and lightning: pip install 'sctrt[train]')."""
